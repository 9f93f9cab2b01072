//! Reads variables, one at a time.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use super::values::byte_count;
use super::{CATALOGUE, ConfigError, Secret, Setting, mask};
use crate::model::{clip, io_reason};

/// Variables whose value may be read from a file, each with the variable that names the file.
const IN_FILES: [(&str, &str); 4] = [
    ("DATABASE_URL", "DATABASE_URL_FILE"),
    ("REDIS_URL", "REDIS_URL_FILE"),
    ("PROVER_API_TOKENS", "PROVER_API_TOKENS_FILE"),
    ("PROVER_ENCRYPTION_KEYS", "PROVER_ENCRYPTION_KEYS_FILE"),
];
/// Maximum size of such a file, in bytes: far more than any of these values needs.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Reads variables and records their effective values.
pub(super) struct Reader<'a> {
    pub(super) lookup: &'a dyn Fn(&str) -> Option<String>,
    /// Variables whose values lie in files.
    in_files: Vec<&'static str>,
    pub(super) settings: Vec<Setting>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { lookup, in_files: Vec::new(), settings: Vec::with_capacity(CATALOGUE.len()) }
    }

    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        let value = (self.lookup)(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let default = CATALOGUE.iter().find(|v| v.name == name).map_or("", |v| v.default);
        let shown = match &value {
            // A file may hold something else than it should, such as a password alone.
            Some(v) if self.in_files.contains(&name) && !v.contains("://") => "***".to_owned(),
            Some(v) => mask(v),
            None => default.to_owned(),
        };
        self.settings.push(Setting { name, value: shown, set: value.is_some() });
        value
    }

    /// Returns the values of the variables that are read from files.
    pub(super) fn files(&mut self) -> Result<Vec<(&'static str, String)>, ConfigError> {
        let mut found = Vec::new();
        for (name, file) in IN_FILES {
            let Some(path) = self.text(file) else { continue };
            if (self.lookup)(name).is_some_and(|v| !v.trim().is_empty()) {
                return Err(self.wrong(file, format!("no value while {name} is set")));
            }
            let wrong = |got: String| ConfigError { name: file, expected: format!("a file that contains {name}"), got };
            let text = small_file(Path::new(&path)).map_err(|e| wrong(format!("{path:?}: {}", io_reason(&e))))?;
            // The variable was meant to be set: its default would be something else.
            if text.trim().is_empty() {
                return Err(wrong(format!("{path:?}, which is empty")));
            }
            found.push((name, text));
            self.in_files.push(name);
        }
        Ok(found)
    }

    /// Reads a variable whose value is never shown.
    pub(super) fn secret(&mut self, name: &'static str) -> Option<Secret> {
        self.value(name, true)
    }

    /// Reads a variable that is passed on as it is. If `secret`, its value is masked in the settings.
    pub(super) fn value(&mut self, name: &'static str, secret: bool) -> Option<Secret> {
        let value = self.text(name)?;
        if let Some(shown) = self.settings.last_mut().filter(|_| secret) {
            "***".clone_into(&mut shown.value);
        }
        Some(Secret(value))
    }

    pub(super) fn parse<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match self.text(name) {
            None => Ok(None),
            Some(text) => parse(&text).map(Some).ok_or_else(|| self.wrong(name, expected)),
        }
    }

    pub(super) fn number<T>(&mut self, name: &'static str, low: T, high: T) -> Result<Option<T>, ConfigError>
    where
        T: FromStr + PartialOrd + fmt::Display,
    {
        let expected = format!("a whole number from {low} to {high}");
        self.parse(name, &expected, |s| s.parse::<T>().ok().filter(|n| *n >= low && *n <= high))
    }

    /// Reads a variable whose value is one of the given words, each with what it stands for.
    pub(super) fn one_of<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, ConfigError> {
        let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let expected = match names.as_slice() {
            [others @ .., last] if !others.is_empty() => format!("{} or {last}", others.join(", ")),
            few => few.concat(),
        };
        self.parse(name, &expected, |s| words.iter().find(|(word, _)| *word == s).map(|(_, value)| *value))
    }

    pub(super) fn on_off(&mut self, name: &'static str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.one_of(name, &[("on", true), ("off", false)])?.unwrap_or(default))
    }

    pub(super) fn secs(
        &mut self,
        name: &'static str,
        default: u64,
        low: u64,
        high: u64,
    ) -> Result<Duration, ConfigError> {
        Ok(Duration::from_secs(self.number(name, low, high)?.unwrap_or(default)))
    }

    /// Reads a number of seconds; `None` when it is `off` or unset.
    pub(super) fn secs_or_off(
        &mut self,
        name: &'static str,
        low: u64,
        high: u64,
    ) -> Result<Option<Duration>, ConfigError> {
        let value = self.parse(name, &format!("a whole number from {low} to {high}, or off"), |s| match s {
            "off" => Some(None),
            n => n.parse().ok().filter(|n| (low..=high).contains(n)).map(Some),
        })?;
        Ok(value.flatten().map(Duration::from_secs))
    }

    pub(super) fn bytes(
        &mut self,
        name: &'static str,
        expected: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, ConfigError> {
        self.parse(name, expected, |s| byte_count(s).filter(|n| range.contains(n)))
    }

    pub(super) fn wrong(&self, name: &'static str, expected: impl Into<String>) -> ConfigError {
        wrong(&self.settings, name, expected)
    }
}

/// The error for a variable whose value is not what was expected.
pub(super) fn wrong(settings: &[Setting], name: &'static str, expected: impl Into<String>) -> ConfigError {
    let got = match settings.iter().rev().find(|s| s.name == name) {
        Some(s) if s.set => format!("{:?}", clip(&s.value, 120)),
        _ => "nothing".to_owned(),
    };
    ConfigError { name, expected: expected.into(), got }
}

fn small_file(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(std::io::Error::other(format!("more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(text)
}
