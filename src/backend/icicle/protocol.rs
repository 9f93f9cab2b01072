//! The messages between the program and its child: each has a kind and a length, and is sent over a socket.
//!
//! Both ends are the same program, so the program's version is the protocol's; even so, each end checks every length
//! and value, because the child runs foreign code.

use std::io::{self, Read, Write};

use super::super::{BackendError, Commitments};
use super::algebra::Group;
use super::key::Step;
use super::library::DeviceProperties;
use super::sys::NAMES;
use crate::model::{G1, G2};

/// Must change with any message. A program that is replaced while it runs may start a child of another version.
pub(super) const VERSION: u32 = 1;
/// Size of a message's header, bytes: kind and length.
pub(super) const HEADER_BYTES: usize = 9;
/// Maximum length of the child's answers, bytes.
pub(super) const MAX_ANSWER_BYTES: u64 = 1 << 16;
/// Number of sections of a key.
pub(super) const SECTIONS: usize = 6;

/// Kinds of messages to the child.
pub(super) mod to_child {
    /// Announces a key: its number and sizes. Its sections follow.
    pub const LOAD: u8 = 1;
    /// A section of the announced key.
    pub const SECTION: u8 = 2;
    /// A witness for a key.
    pub const COMMIT: u8 = 3;
    /// A key is no longer needed.
    pub const UNLOAD: u8 = 4;
    /// The proof with this number should stop.
    pub const STOP: u8 = 5;
}

/// Kinds of messages from the child.
pub(super) mod from_child {
    /// The device is ready.
    pub const HELLO: u8 = 65;
    /// A step begins.
    pub const STEP: u8 = 66;
    /// The key is loaded.
    pub const LOADED: u8 = 67;
    /// The five products.
    pub const COMMITMENTS: u8 = 68;
    /// The current request failed.
    pub const FAILED: u8 = 69;
}

/// A message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub kind: u8,
    pub body: Vec<u8>,
}

/// Encodes the header of a message.
pub(super) fn encode_header(kind: u8, length: u64) -> [u8; HEADER_BYTES] {
    let mut header = [kind; HEADER_BYTES];
    header[1..].copy_from_slice(&length.to_le_bytes());
    header
}

/// Decodes a header into kind and length.
pub(super) fn decode_header(header: &[u8; HEADER_BYTES]) -> (u8, u64) {
    let [kind, length @ ..] = *header;
    (kind, u64::from_le_bytes(length))
}

/// Writes a message.
pub(super) fn write(to: &mut impl Write, kind: u8, body: &[u8]) -> io::Result<()> {
    to.write_all(&encode_header(kind, body.len() as u64))?;
    to.write_all(body)
}

/// Reads a message. Memory is allocated as bytes arrive, not by the announced length.
pub(super) fn read(from: &mut impl Read) -> io::Result<Message> {
    let mut header = [0; HEADER_BYTES];
    from.read_exact(&mut header)?;
    let (kind, length) = decode_header(&header);
    let mut body = Vec::new();
    if from.by_ref().take(length).read_to_end(&mut body)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Message { kind, body })
}

/// Encodes a body.
#[derive(Default)]
pub(super) struct Encoder(pub Vec<u8>);

impl Encoder {
    pub(super) fn u8(mut self, x: u8) -> Self {
        self.0.push(x);
        self
    }

    pub(super) fn u32(mut self, x: u32) -> Self {
        self.0.extend(x.to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, x: u64) -> Self {
        self.0.extend(x.to_le_bytes());
        self
    }

    /// Appends text, shortened to the maximum for any message.
    pub(super) fn text(self, text: &str) -> Self {
        let end = text.floor_char_boundary(4096);
        let mut body = self.u32(end as u32);
        body.0.extend(&text.as_bytes()[..end]);
        body
    }

    fn point<G: Group>(mut self, point: &G) -> Self {
        G::write(&point.into_affine(), &mut self.0);
        self
    }
}

/// Decodes a body.
pub(super) struct Decoder<'a>(pub &'a [u8]);

/// Why a message is invalid, as one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProtocolError(pub String);

impl<'a> Decoder<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], ProtocolError> {
        let (bytes, rest) = self
            .0
            .split_at_checked(n)
            .ok_or_else(|| ProtocolError(format!("expected {n} more bytes of a message, got {}", self.0.len())))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, ProtocolError> {
        self.array().map(|[x]| x)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn text(&mut self) -> Result<String, ProtocolError> {
        let n = self.u32()? as usize;
        Ok(String::from_utf8_lossy(self.bytes(n)?).into_owned())
    }

    fn point<G: Group>(&mut self) -> Result<G, ProtocolError> {
        G::read_affine(self.bytes(G::BYTES)?)
            .ok_or_else(|| ProtocolError("expected a point on the curve, got none".into()))
    }

    pub(super) fn end(self) -> Result<(), ProtocolError> {
        match self.0.len() {
            0 => Ok(()),
            n => Err(ProtocolError(format!("expected the end of a message, got {n} more bytes"))),
        }
    }
}

/// Describes the child's device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    /// Type of the device, such as `CUDA`.
    pub kind: String,
    /// Number of devices of that type.
    pub count: u32,
    /// Range of releases to which the libraries belong.
    pub release: String,
    /// Total memory, bytes; 0 if the device does not report it.
    pub memory: u64,
}

impl Hello {
    pub(super) fn body(found: &DeviceProperties) -> Vec<u8> {
        let body = Encoder::default().u32(VERSION).text(&found.kind).u32(found.count);
        body.text(found.release.as_str()).u64(found.memory.0).0
    }

    pub(super) fn read(body: &[u8]) -> Result<Self, ProtocolError> {
        let mut decoder = Decoder(body);
        let version = decoder.u32()?;
        if version != VERSION {
            return Err(ProtocolError(format!("expected version {VERSION} of the program's messages, got {version}")));
        }
        let hello =
            Self { kind: decoder.text()?, count: decoder.u32()?, release: decoder.text()?, memory: decoder.u64()? };
        decoder.end()?;
        Ok(hello)
    }
}

/// Sizes of a key whose sections follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    pub key: u64,
    pub n_vars: u32,
    pub n_public: u32,
    pub domain_size: u32,
}

impl Load {
    pub(super) fn body(&self) -> Vec<u8> {
        Encoder::default().u64(self.key).u32(self.n_vars).u32(self.n_public).u32(self.domain_size).0
    }

    pub(super) fn read(body: &[u8]) -> Result<Self, ProtocolError> {
        let mut decoder = Decoder(body);
        let load =
            Self { key: decoder.u64()?, n_vars: decoder.u32()?, n_public: decoder.u32()?, domain_size: decoder.u32()? };
        decoder.end()?;
        Ok(load)
    }
}

/// Encodes a step that begins, and the percentage done.
pub(super) fn step(step: Step, percent: u8) -> Vec<u8> {
    let number = Step::ALL.iter().position(|s| *s == step).unwrap_or_default();
    Encoder::default().u8(number as u8).u8(percent).0
}

pub(super) fn read_step(body: &[u8]) -> Result<(Step, u8), ProtocolError> {
    let mut decoder = Decoder(body);
    let (number, percent) = (decoder.u8()?, decoder.u8()?);
    decoder.end()?;
    let step = Step::ALL.get(usize::from(number)).copied();
    let step = step.ok_or_else(|| ProtocolError(format!("expected a step below {}, got {number}", Step::ALL.len())))?;
    Ok((step, percent.min(100)))
}

pub(super) fn commitments(c: &Commitments) -> Vec<u8> {
    Encoder::default().point(&c.a).point(&c.b1).point(&c.b2).point(&c.c).point(&c.h).0
}

pub(super) fn read_commitments(body: &[u8]) -> Result<Commitments, ProtocolError> {
    let mut decoder = Decoder(body);
    let read = Commitments {
        a: decoder.point::<G1>()?,
        b1: decoder.point::<G1>()?,
        b2: decoder.point::<G2>()?,
        c: decoder.point::<G1>()?,
        h: decoder.point::<G1>()?,
    };
    decoder.end()?;
    Ok(read)
}

/// How the child failed, as far as it can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// As one sentence.
    Other(String),
    /// A call returned an error code.
    Code { op: &'static str, code: i64 },
    /// The device does not have enough memory.
    OutOfMemory { needed: u64, free: u64 },
    /// The work was asked to stop.
    Stopped,
}

impl From<BackendError> for Failure {
    fn from(e: BackendError) -> Self {
        match e {
            BackendError::Device { op, code } => Self::Code { op, code },
            BackendError::OutOfMemory { needed, free } => Self::OutOfMemory { needed, free },
            BackendError::Stopped(_) => Self::Stopped,
            BackendError::Unavailable { why, .. } => Self::Other(why),
            e @ (BackendError::Shape { .. }
            | BackendError::OutOfRange { .. }
            | BackendError::TooSmall { .. }
            | BackendError::BatchResults { .. }) => Self::Other(e.to_string()),
        }
    }
}

impl Failure {
    pub(super) fn body(&self) -> Vec<u8> {
        let body = Encoder::default();
        match self {
            Self::Other(why) => body.u8(0).text(why).0,
            Self::Code { op, code } => {
                let number = NAMES.iter().position(|name| name == op).unwrap_or(NAMES.len());
                body.u8(1).u8(number as u8).u64(code.cast_unsigned()).0
            }
            Self::OutOfMemory { needed, free } => body.u8(2).u64(*needed).u64(*free).0,
            Self::Stopped => body.u8(3).0,
        }
    }

    pub(super) fn read(body: &[u8]) -> Result<Self, ProtocolError> {
        let mut decoder = Decoder(body);
        let failure = match decoder.u8()? {
            0 => Self::Other(decoder.text()?),
            1 => {
                let number = decoder.u8()?;
                let op = NAMES.get(usize::from(number)).copied();
                let op = op
                    .ok_or_else(|| ProtocolError(format!("expected a function below {}, got {number}", NAMES.len())))?;
                Self::Code { op, code: decoder.u64()?.cast_signed() }
            }
            2 => Self::OutOfMemory { needed: decoder.u64()?, free: decoder.u64()? },
            3 => Self::Stopped,
            kind => return Err(ProtocolError(format!("expected a failure of kind 0 to 3, got {kind}"))),
        };
        decoder.end()?;
        Ok(failure)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ark_ec::PrimeGroup;
    use ark_ff::Zero;
    use proptest::prelude::*;

    use super::super::sys::Release;
    use super::*;
    use crate::model::Fr;

    #[test]
    fn messages_come_out_as_they_went_in() {
        let mut bytes = Vec::new();
        write(&mut bytes, to_child::COMMIT, b"abc").unwrap();
        write(&mut bytes, to_child::STOP, b"").unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(read(&mut from).unwrap(), Message { kind: to_child::COMMIT, body: b"abc".to_vec() });
        assert_eq!(read(&mut from).unwrap(), Message { kind: to_child::STOP, body: Vec::new() });
        assert!(read(&mut from).is_err(), "the end");
    }

    #[test]
    fn a_length_that_nothing_follows_takes_no_memory() {
        let mut bytes = encode_header(1, u64::MAX).to_vec();
        bytes.extend([0; 100]);
        assert_eq!(read(&mut bytes.as_slice()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn bodies_come_out_as_they_went_in() {
        let found = DeviceProperties { kind: "CUDA".into(), count: 2, memory: (80 << 30, 1), release: Release::Four };
        let hello = Hello::read(&Hello::body(&found)).unwrap();
        let same = Hello { kind: "CUDA".into(), count: 2, release: "4.0 or later".into(), memory: 80 << 30 };
        assert_eq!(hello, same);
        let load = Load { key: 7, n_vars: 1 << 27, n_public: 3, domain_size: 1 << 28 };
        assert_eq!(Load::read(&load.body()), Ok(load));
        for s in Step::ALL {
            assert_eq!(read_step(&step(s, 12)), Ok((s, 12)));
        }
        let failures = [
            Failure::Other("it is broken".into()),
            Failure::Code { op: "bn254_g2_msm", code: -1 },
            Failure::OutOfMemory { needed: 2, free: 1 },
            Failure::Stopped,
        ];
        for failure in failures {
            assert_eq!(Failure::read(&failure.body()), Ok(failure));
        }
        let points = Commitments {
            a: G1::generator() * Fr::from(5u64),
            b1: G1::zero(),
            b2: G2::generator() * Fr::from(6u64),
            c: G1::generator(),
            h: -G1::generator(),
        };
        assert_eq!(read_commitments(&commitments(&points)), Ok(points));
    }

    #[test]
    fn a_child_of_another_version_is_told_from_this_one() {
        let body = Encoder::default().u32(VERSION + 1).0;
        let why = ProtocolError(format!("expected version {VERSION} of the program's messages, got {}", VERSION + 1));
        assert_eq!(Hello::read(&body), Err(why));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(body in proptest::collection::vec(any::<u8>(), 0..500)) {
            let _ = (Hello::read(&body), Load::read(&body), read_step(&body), Failure::read(&body));
            prop_assert!(read_commitments(&body).is_err());
        }

        #[test]
        fn commitments_with_a_changed_byte_are_no_points(at in 0usize..384, flip in 1u8..) {
            let one = G1::generator();
            let points = Commitments { a: one, b1: one, b2: G2::generator(), c: one, h: one };
            let mut body = commitments(&points);
            body[at] ^= flip;
            // The chance that a changed coordinate belongs to another point with the same other coordinate is
            // negligible.
            prop_assert!(read_commitments(&body).is_err());
        }
    }
}
