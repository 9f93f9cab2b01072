//! The container of sections that iden3's file formats zkey, wtns and r1cs share.
//!
//! ```text
//! magic (4 bytes) │ u32 version │ u32 number of sections │ { u32 id │ u64 length │ data } …
//! ```
//!
//! Sections may come in any order, and sections with unknown ids are skipped. The last section must end where the file
//! ends: no writer produces bytes after it, but a wrong number of sections would leave some, so they are an error.

use std::fmt;
use std::ops::Range;

use num_bigint::BigUint;

use super::{FileKind, FormatError};
use crate::model::named_prime;

/// Size of what precedes the first section, in bytes.
const PREAMBLE: usize = 12;
/// Size of what precedes a section's data, in bytes.
const SECTION_HEADER: usize = 12;

/// A file format.
pub(super) struct Format {
    /// First four bytes; also the format's name in messages.
    pub magic: &'static str,
    /// The supported version.
    pub version: u32,
    /// Ids and names of the sections that are read. Each may occur at most once.
    pub sections: &'static [(u32, &'static str)],
}

/// The positions of a file's sections.
pub(super) struct Sections<'a> {
    file: &'a [u8],
    format: &'static Format,
    found: Vec<Option<Range<usize>>>,
}

impl<'a> Sections<'a> {
    /// Finds the sections of `file`, reading only the section headers.
    pub fn read(file: &'a [u8], format: &'static Format) -> Result<Self, FormatError> {
        let mut at = Cursor { file, at: 0, end: file.len(), section: Place::File(format.magic) };
        let magic = at.take(4, "magic")?;
        if magic != format.magic.as_bytes() {
            return Err(mismatch(at.place("magic"), format!("{:?}", format.magic), beginning(magic)));
        }
        let version = at.u32("version")?;
        if version != format.version {
            return Err(mismatch(at.place("version"), format.version, version));
        }
        let count = at.u32("number of sections")?;
        let needed = u64::from(count) * SECTION_HEADER as u64;
        let available = (file.len() - PREAMBLE) as u64;
        if needed > available {
            return Err(FormatError::Truncated {
                what: format!("headers of {count} sections"),
                offset: PREAMBLE as u64,
                needed,
                available,
            });
        }
        let mut found = vec![None; format.sections.len()];
        for i in 0..count {
            at.section = Place::Header(i, count);
            let id = at.u32("id")?;
            let length = at.u64("length")?;
            let known = format.sections.iter().position(|s| s.0 == id);
            at.section = match known {
                Some(k) => Place::Section(format.sections[k]),
                None => Place::Unread(id),
            };
            let start = at.at;
            at.skip(length, "data")?;
            if let Some(k) = known {
                if found[k].is_some() {
                    let (id, name) = format.sections[k];
                    return Err(FormatError::DuplicateSection { id, name });
                }
                found[k] = Some(start..at.at);
            }
        }
        if at.at != file.len() {
            return Err(mismatch(
                format!("{} file, end of the last section", format.magic),
                format!("the end of the file, {} bytes", file.len()),
                format!("{} bytes, {} more follow", at.at, file.len() - at.at),
            ));
        }
        Ok(Self { file, format, found })
    }

    /// Returns a required section.
    pub fn section(&self, id: u32) -> Result<Cursor<'a>, FormatError> {
        self.optional(id).ok_or(FormatError::MissingSection { id, name: self.name(id) })
    }

    /// Returns an optional section.
    pub fn optional(&self, id: u32) -> Option<Cursor<'a>> {
        let k = self.format.sections.iter().position(|s| s.0 == id)?;
        let range = self.found[k].clone()?;
        let section = Place::Section(self.format.sections[k]);
        Some(Cursor { file: self.file, at: range.start, end: range.end, section })
    }

    fn name(&self, id: u32) -> &'static str {
        self.format.sections.iter().find(|s| s.0 == id).map_or("unknown", |s| s.1)
    }
}

/// Describes a file by its first bytes.
fn beginning(magic: &[u8]) -> String {
    FileKind::of(magic).map_or_else(|| format!("\"{}\"", magic.escape_ascii()), |kind| kind.to_string())
}

/// Returns the name of a section for messages.
pub(super) fn section_name((id, name): (u32, &str)) -> String {
    format!("section {id} ({name})")
}

/// What a cursor is in. It is formatted only for messages, because a file may have very many sections.
#[derive(Clone, Copy)]
enum Place {
    File(&'static str),
    Header(u32, u32),
    Section((u32, &'static str)),
    Unread(u32),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::File(magic) => write!(f, "{magic} file"),
            Self::Header(i, count) => write!(f, "header of section {} of {count}", i + 1),
            Self::Section(s) => f.write_str(&section_name(s)),
            Self::Unread(id) => write!(f, "section {id}"),
        }
    }
}

/// Reads one section from front to back.
pub(super) struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
    end: usize,
    section: Place,
}

impl<'a> Cursor<'a> {
    /// Returns the section's name and a place in it, for messages.
    pub fn place(&self, what: &str) -> String {
        format!("{}, {what}", self.section)
    }

    /// Returns the number of unread bytes.
    pub fn remaining(&self) -> usize {
        self.end - self.at
    }

    /// Returns the range of the unread bytes in the file.
    pub fn rest(&self) -> Range<usize> {
        self.at..self.end
    }

    /// Reads the next `n` bytes.
    pub fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], FormatError> {
        let start = self.at;
        self.skip(n as u64, what)?;
        Ok(&self.file[start..self.at])
    }

    /// Reads the next four bytes as a number.
    pub fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        let mut word = [0; 4];
        word.copy_from_slice(self.take(4, what)?);
        Ok(u32::from_le_bytes(word))
    }

    /// Reads the next eight bytes as a number.
    pub fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        let mut word = [0; 8];
        word.copy_from_slice(self.take(8, what)?);
        Ok(u64::from_le_bytes(word))
    }

    /// Skips `n` bytes, where `n` is a claim of the file.
    fn skip(&mut self, n: u64, what: &str) -> Result<(), FormatError> {
        let available = self.remaining() as u64;
        if n > available {
            return Err(FormatError::Truncated {
                what: self.place(what),
                offset: self.at as u64,
                needed: n,
                available,
            });
        }
        self.at += n as usize;
        Ok(())
    }

    /// Reads a u32 byte length and a prime of that many bytes, which must equal `expected`, a prime of 32 bytes in
    /// decimal.
    pub fn prime(&mut self, what: &str, expected: &str) -> Result<(), FormatError> {
        let n8 = self.u32(&format!("bytes of {what}"))?;
        // Longer than the prime of any known field, so the error does not print the number.
        if n8 == 0 || n8 > 128 {
            return Err(mismatch(self.place(&format!("bytes of {what}")), 32, n8));
        }
        let got = BigUint::from_bytes_le(self.take(n8 as usize, what)?).to_string();
        if got != expected {
            return Err(mismatch(self.place(what), named_prime(expected), named_prime(&got)));
        }
        if n8 != 32 {
            return Err(mismatch(self.place(&format!("bytes of {what}")), 32, n8));
        }
        Ok(())
    }

    /// Fails if there are unread bytes.
    pub fn finish(&self) -> Result<(), FormatError> {
        if self.at == self.end {
            return Ok(());
        }
        let left = self.remaining();
        Err(mismatch(format!("{}, length", self.section), "no byte after its last field", format!("{left} more")))
    }
}

/// Creates the most common error.
pub(super) fn mismatch(what: impl Into<String>, expected: impl ToString, got: impl ToString) -> FormatError {
    FormatError::Mismatch { what: what.into(), expected: expected.to_string(), got: got.to_string() }
}

/// Writes a file's preamble.
pub(super) fn write_preamble(format: &Format, sections: u32, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    out.write_all(format.magic.as_bytes())?;
    out.write_all(&format.version.to_le_bytes())?;
    out.write_all(&sections.to_le_bytes())
}

/// Writes a section from the parts of its data.
pub(super) fn write_section(id: u32, parts: &[&[u8]], out: &mut dyn std::io::Write) -> std::io::Result<()> {
    let length: u64 = parts.iter().map(|p| p.len() as u64).sum();
    out.write_all(&id.to_le_bytes())?;
    out.write_all(&length.to_le_bytes())?;
    parts.iter().try_for_each(|p| out.write_all(p))
}
