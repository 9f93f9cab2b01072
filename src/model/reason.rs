//! Messages for the operating system's errors.

use std::io;

/// Describes an error of a file, without the operating system's error number. The caller adds the file's name.
pub fn io_reason(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::NotFound => "no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::AlreadyExists => "something else already exists there".into(),
        io::ErrorKind::StorageFull => "no space is left on the device".into(),
        io::ErrorKind::QuotaExceeded => "the disk quota is exceeded".into(),
        io::ErrorKind::FileTooLarge => "the file would be larger than is allowed (ulimit -f)".into(),
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".into(),
        io::ErrorKind::IsADirectory => "it is a folder".into(),
        io::ErrorKind::NotADirectory => "a part of its path is not a folder".into(),
        _ => without_number(&e.to_string()),
    }
}

/// Removes the error number, which Rust adds to the operating system's message.
fn without_number(text: &str) -> String {
    let cut = text.split_once(" (os error ").and_then(|(words, rest)| {
        let (number, more) = rest.split_once(')')?;
        number.parse::<i32>().is_ok().then(|| format!("{words}{more}"))
    });
    cut.unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_words_without_a_number() {
        // Linux's error numbers.
        for (number, words) in [(2, "no such file"), (21, "it is a folder"), (20, "a part of its path is not a folder")]
        {
            assert_eq!(io_reason(&io::Error::from_raw_os_error(number)), words);
        }
        for number in 1..134 {
            let said = io_reason(&io::Error::from_raw_os_error(number));
            assert!(!said.is_empty() && !said.contains("os error"), "{number}: {said}");
        }
    }

    #[test]
    fn what_others_say_stays_as_it_is() {
        for own in ["not a regular file", "a (os error", "a (os error x)"] {
            assert_eq!(io_reason(&io::Error::new(io::ErrorKind::InvalidInput, own)), own);
        }
        let with_path = io::Error::other("Too many open files (os error 24) at path \"/a\"");
        assert_eq!(io_reason(&with_path), "Too many open files at path \"/a\"");
    }
}
