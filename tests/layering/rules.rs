//! The rules, each applied to one file.

use crate::source::{Token, module, paths, tokens};

/// Which rooms a room may use. `main` may use only `cli`, programs in `bin` only `prover`; the root (`lib.rs`) only
/// declares modules.
pub const ARROWS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("formats", &["model"]),
    ("seal", &["model"]),
    ("config", &["model"]),
    ("telemetry", &["model"]),
    ("backend", &["formats", "model"]),
    ("groth16", &["backend", "formats", "model"]),
    ("prover", &["groth16", "backend", "formats", "config", "model"]),
    ("witness", &["backend", "formats", "model"]),
    ("store", &["model"]),
    ("queue", &["model"]),
    ("artifacts", &["model"]),
    ("registry", &["groth16", "store", "artifacts", "witness", "backend", "formats", "config", "telemetry", "model"]),
    (
        "worker",
        &[
            "registry",
            "groth16",
            "store",
            "queue",
            "artifacts",
            "witness",
            "backend",
            "formats",
            "seal",
            "config",
            "telemetry",
            "model",
        ],
    ),
    (
        "http",
        &[
            "worker",
            "registry",
            "groth16",
            "store",
            "queue",
            "artifacts",
            "witness",
            "backend",
            "formats",
            "seal",
            "config",
            "telemetry",
            "model",
        ],
    ),
    (
        "cli",
        &[
            "http",
            "worker",
            "registry",
            "prover",
            "groth16",
            "store",
            "queue",
            "artifacts",
            "witness",
            "backend",
            "formats",
            "seal",
            "config",
            "telemetry",
            "model",
        ],
    ),
];

/// Returns whether `from` may use `to`.
pub fn may_use(from: &str, to: &str) -> bool {
    let allowed: &[&str] = match from {
        "main" => &["cli"],
        "bin" => &["prover"],
        _ => ARROWS.iter().find(|(r, _)| *r == from).map_or(&[], |(_, to)| *to),
    };
    from == to || allowed.contains(&to)
}

fn is_room(name: &str) -> bool {
    ARROWS.iter().any(|(r, _)| *r == name)
}

/// Returns the rules that the file `name` (below `src`) with this text breaks, each as `file:line: what`.
pub fn check(name: &str, text: &str) -> Vec<String> {
    let module = module(name);
    let room = module.first().map_or("lib", String::as_str);
    let tokens = tokens(text);
    let mut broken = Vec::new();
    let mut say = |line: usize, what: String| broken.push(format!("src/{name}:{line}: {what}"));

    if !is_room(room) && !matches!(room, "main" | "bin" | "lib") {
        say(1, format!("{room} is no room of the table"));
    }
    let env_allowed = room == "config";
    for path in paths(&module, &tokens) {
        let mut segments = path.segments.iter().map(String::as_str);
        match (segments.next(), segments.next(), segments.next()) {
            // The program's own path and the target's constants are not the environment, nor are arguments where they
            // are read.
            (Some("std"), Some("env"), Some("current_exe" | "consts")) => {}
            (Some("std"), Some("env"), Some("args_os")) if room == "prover" => {}
            (Some("std"), Some("env"), _) if !env_allowed => {
                say(path.line, "the environment is read outside src/config.rs".to_owned());
            }
            (Some("crate"), Some("*"), _) => {
                say(path.line, "a glob over the crate's root hides what is used".to_owned());
            }
            (Some("crate"), Some(to), _) if to != room => {
                if !is_room(to) {
                    say(path.line, format!("crate::{to}: {to} is no room of the table"));
                } else if room != "lib" && !may_use(room, to) {
                    say(path.line, format!("{room} may not use {to}"));
                }
            }
            _ => {}
        }
    }
    for (n, (token, line)) in tokens.iter().enumerate() {
        let Token::Word(word) = token else { continue };
        match *word {
            "unsafe" if room != "backend" => say(*line, "unsafe outside src/backend".to_owned()),
            "from_default_env" | "try_from_default_env" if !env_allowed => {
                say(*line, format!("{word} reads the environment outside src/config.rs"));
            }
            "todo" | "unimplemented" | "dbg"
                if matches!(tokens.get(n + 1), Some((Token::Mark('!'), _)))
                    && !matches!(tokens.get(n + 2), Some((Token::Mark('='), _))) =>
            {
                say(*line, format!("{word}! left in the code"));
            }
            _ => {}
        }
    }
    broken
}

/// Returns the comment lines of a file that are longer than 120 columns, each as `file:line: columns`. A URL alone on
/// its line may be longer.
pub fn long_comments(file: &str, text: &str) -> Vec<String> {
    let mut long = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let comment = line.trim_start();
        let words = comment.trim_start_matches(['/', '!']).trim();
        let is_url = words.contains("://") && !words.contains(' ');
        let columns = line.trim_end().chars().count();
        if comment.starts_with("//") && columns > 120 && !is_url {
            long.push(format!("{file}:{}: {columns} columns", n + 1));
        }
    }
    long
}
