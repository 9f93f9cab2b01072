//! A strict, streaming reader of JSON text.
//!
//! Numbers in an input are secret, and long ones must not lose digits. A general JSON library copies each number into
//! buffers that are never overwritten, quotes values in its errors, and returns a long number as a map with a magic
//! key. This reader lends slices of the text, and its errors give positions, never contents.

use std::borrow::Cow;

use zeroize::Zeroize;

/// Where a text stops being valid JSON, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Syntax {
    /// Byte offset of the error.
    pub at: usize,
    /// What was expected there.
    pub why: &'static str,
}

/// Reads a text from the front.
pub(super) struct Reader<'a> {
    text: &'a str,
    at: usize,
}

/// How a number token is written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Number<'a> {
    /// Digits with an optional minus.
    Integer(&'a str),
    /// With a fraction or an exponent.
    Other,
}

/// A string token; if it has escapes, a copy that is overwritten with zeros when dropped.
pub(super) struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Drop for Text<'_> {
    fn drop(&mut self) {
        if let Cow::Owned(s) = &mut self.0 {
            s.zeroize();
        }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    /// An error at the current position.
    pub(super) fn error(&self, why: &'static str) -> Syntax {
        Syntax { at: self.at, why }
    }

    /// Returns the next byte that is not white space, without consuming it.
    pub(super) fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.bytes().get(self.at) {
            self.at += 1;
        }
        self.bytes().get(self.at).copied()
    }

    /// Consumes `byte` if it comes next.
    pub(super) fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    /// Consumes `byte` or fails.
    pub(super) fn expect(&mut self, byte: u8, why: &'static str) -> Result<(), Syntax> {
        if self.take(byte) { Ok(()) } else { Err(self.error(why)) }
    }

    /// Consumes `word` if it comes next.
    pub(super) fn word(&mut self, word: &str) -> bool {
        self.peek();
        let there = self.bytes()[self.at..].starts_with(word.as_bytes());
        if there {
            self.at += word.len();
        }
        there
    }

    /// Consumes a number.
    pub(super) fn number(&mut self) -> Result<Number<'a>, Syntax> {
        self.peek();
        let start = self.at;
        if self.bytes().get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        let first = self.at;
        match self.digits() {
            0 => return Err(self.error("expected a digit")),
            1 => {}
            _ if self.bytes()[first] == b'0' => {
                return Err(Syntax { at: first, why: "a number may not begin with 0" });
            }
            _ => {}
        }
        let end = self.at;
        if self.bytes().get(self.at) == Some(&b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return Err(self.error("expected a digit after the point"));
            }
        }
        if let Some(b'e' | b'E') = self.bytes().get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.bytes().get(self.at) {
                self.at += 1;
            }
            if self.digits() == 0 {
                return Err(self.error("expected a digit in the exponent"));
            }
        }
        Ok(if self.at == end { Number::Integer(&self.text[start..end]) } else { Number::Other })
    }

    /// Consumes digits and counts them.
    fn digits(&mut self) -> usize {
        let n = self.bytes()[self.at..].iter().take_while(|b| b.is_ascii_digit()).count();
        self.at += n;
        n
    }

    /// Consumes a string and resolves its escapes.
    pub(super) fn string(&mut self) -> Result<Text<'a>, Syntax> {
        self.expect(b'"', "expected a string")?;
        let start = self.at;
        let mut copy: Option<Text<'a>> = None;
        let mut run = start;
        loop {
            match self.bytes().get(self.at) {
                None => return Err(self.error("the string does not end")),
                Some(b'"') => {
                    // Slices begin and end next to ASCII bytes, so always at character boundaries.
                    let rest = &self.text[run..self.at];
                    self.at += 1;
                    return Ok(match copy {
                        None => Text(Cow::Borrowed(rest)),
                        Some(mut t) => {
                            t.push(rest);
                            t
                        }
                    });
                }
                Some(b'\\') => {
                    let before = &self.text[run..self.at];
                    self.at += 1;
                    let c = self.escape()?;
                    let t = copy.get_or_insert_with(|| Text(Cow::Owned(String::new())));
                    t.push(before);
                    t.push(c.encode_utf8(&mut [0; 4]));
                    run = self.at;
                }
                Some(0..0x20) => return Err(self.error("a control character in a string")),
                Some(_) => self.at += 1,
            }
        }
    }

    /// Reads the character that an escape stands for, after the backslash.
    fn escape(&mut self) -> Result<char, Syntax> {
        let Some(b) = self.bytes().get(self.at) else {
            return Err(self.error("the string does not end"));
        };
        self.at += 1;
        Ok(match b {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let high = self.four()?;
                let code = if (0xd800..0xdc00).contains(&high) {
                    if !self.text[self.at..].starts_with("\\u") {
                        return Err(self.error("half of a surrogate pair in a string"));
                    }
                    self.at += 2;
                    let low = self.four()?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return Err(self.error("half of a surrogate pair in a string"));
                    }
                    0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)
                } else {
                    high
                };
                char::from_u32(code).ok_or(self.error("half of a surrogate pair in a string"))?
            }
            _ => return Err(self.error("an unknown escape in a string")),
        })
    }

    /// Consumes four hexadecimal digits.
    fn four(&mut self) -> Result<u32, Syntax> {
        let why = "expected four hexadecimal digits after \\u";
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.bytes().get(self.at).and_then(|b| char::from(*b).to_digit(16));
            code = code * 16 + digit.ok_or(self.error(why))?;
            self.at += 1;
        }
        Ok(code)
    }

    /// Fails unless only white space remains.
    pub(super) fn end(&mut self) -> Result<(), Syntax> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("unexpected data after the end of the document")),
        }
    }
}

impl Text<'_> {
    /// Appends text; overwrites the old buffer when it has to grow.
    fn push(&mut self, more: &str) {
        let Cow::Owned(s) = &mut self.0 else { return };
        if s.capacity() - s.len() < more.len() {
            let mut larger = String::with_capacity((s.capacity() * 2).max(s.len() + more.len()).max(64));
            larger.push_str(s);
            s.zeroize();
            *s = larger;
        }
        s.push_str(more);
    }
}
