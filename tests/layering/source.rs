//! Rust source as tokens, and the paths written in it. Covers only as much of the language as the rules need: comments,
//! strings and characters are skipped, `use` groups and `super` are resolved.

/// A token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Token<'a> {
    /// An identifier or keyword.
    Word(&'a str),
    /// `::`
    PathSep,
    /// Any other character.
    Mark(char),
}

/// A token and its line, from 1.
pub type At<'a> = (Token<'a>, usize);

/// A path as written, resolved as far as the text allows.
#[derive(PartialEq, Eq, Debug)]
pub struct Path {
    /// Segments from the crate's root (`crate`, …) or from an outside crate (`std`, …). A `*` ends a glob.
    pub segments: Vec<String>,
    /// Line of its last segment.
    pub line: usize,
}

/// Splits `text` into tokens.
pub fn tokens(text: &str) -> Vec<At<'_>> {
    let mut out = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < text.len() {
        let rest = &text[at..];
        let c = rest.chars().next().unwrap();
        let (len, token) = if let Some(len) = skip(rest) {
            (len, None)
        } else if c == '_' || c.is_alphabetic() {
            let len = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
            (len, Some(Token::Word(&rest[..len])))
        } else if c.is_ascii_digit() {
            // A number with its suffix, so that `0u8` is not a word.
            (rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len()), None)
        } else if rest.starts_with("::") {
            (2, Some(Token::PathSep))
        } else {
            (c.len_utf8(), (!c.is_whitespace()).then_some(Token::Mark(c)))
        };
        out.extend(token.map(|t| (t, line)));
        line += rest[..len].matches('\n').count();
        at += len;
    }
    out
}

/// Returns the length of the comment, string or character that `rest` begins with.
fn skip(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment(rest));
    }
    let body = rest.strip_prefix(['b', 'c']).unwrap_or(rest);
    let prefix = rest.len() - body.len();
    if let Some(raw) = body.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let open = prefix + 1 + hashes + 1;
            let close = format!("\"{}", "#".repeat(hashes));
            return Some(rest[open..].find(&close).map_or(rest.len(), |n| open + n + close.len()));
        }
        return None;
    }
    if body.starts_with('"') {
        return Some(prefix + quoted(body, '"'));
    }
    // 'a' and '\n' are characters, 'a alone is a lifetime.
    let mut chars = body.chars();
    if chars.next() == Some('\'') {
        let first = chars.next()?;
        return if first == '\\' || chars.next() == Some('\'') { Some(prefix + quoted(body, '\'')) } else { None };
    }
    None
}

/// Returns the length of the nested block comment that `rest` begins with.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let (step, change) = match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (2, 1),
            [b'*', b'/', ..] => (2, -1),
            _ => (1, 0),
        };
        at += step;
        depth += change;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// Returns the length of the text between two `quote`s that `rest` begins with, taking backslash escapes into account.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (n, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return n + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// Returns the module path of a file below `src`: `a/b.rs` and `a/b/mod.rs` are both `[a, b]`, `lib.rs` is the root.
pub fn module(file: &str) -> Vec<String> {
    let stem = file.trim_end_matches(".rs");
    let stem = stem.strip_suffix("/mod").unwrap_or(stem);
    if stem == "lib" { Vec::new() } else { stem.split('/').map(str::to_owned).collect() }
}

/// Returns every path in `tokens` that begins with `crate`, `self`, `super`, this crate's own name or `std`, with
/// groups expanded. Those of the crate begin with `crate` in the result.
pub fn paths(module: &[String], tokens: &[At<'_>]) -> Vec<Path> {
    let mut out = Vec::new();
    // The inline modules around the current token, each with the depth of braces at which it was opened.
    let mut inline: Vec<(String, usize)> = Vec::new();
    let mut depth = 0_usize;
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].0 {
            Token::Mark('{') => depth += 1,
            Token::Mark('}') => {
                depth = depth.saturating_sub(1);
                if inline.last().is_some_and(|(_, d)| *d == depth) {
                    inline.pop();
                }
            }
            Token::Word("mod") => {
                if let [(Token::Word(name), _), (Token::Mark('{'), _), ..] = &tokens[at + 1..] {
                    inline.push(((*name).to_owned(), depth));
                }
            }
            Token::Word(w @ ("crate" | "self" | "super" | "prover_worker" | "std")) => {
                let starts = at == 0 || tokens[at - 1].0 != Token::PathSep;
                if starts && matches!(tokens.get(at + 1), Some((Token::PathSep, _))) {
                    let mut here = vec!["crate".to_owned()];
                    here.extend(module.iter().cloned());
                    here.extend(inline.iter().map(|(m, _)| m.clone()));
                    let base = match w {
                        "self" => here,
                        "super" => parent(here),
                        "std" => vec!["std".to_owned()],
                        _ => vec!["crate".to_owned()],
                    };
                    at = follow(tokens, at + 1, base, &mut out);
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    out
}

/// Returns the parent module; that of the root is the root.
fn parent(mut path: Vec<String>) -> Vec<String> {
    if path.len() > 1 {
        path.pop();
    }
    path
}

/// Follows `::segment…` from `at`, adds the paths to `out`, and returns the index where it stopped.
fn follow(tokens: &[At<'_>], mut at: usize, mut path: Vec<String>, out: &mut Vec<Path>) -> usize {
    let mut line = tokens.get(at).map_or(0, |t| t.1);
    while let [(Token::PathSep, _), (next, next_line), ..] = tokens.get(at..).unwrap_or_default() {
        line = *next_line;
        match next {
            Token::Word("super") => path = parent(path),
            Token::Word("self") => {}
            Token::Word(w) => path.push((*w).to_owned()),
            Token::Mark('*') => path.push("*".to_owned()),
            Token::Mark('{') => return group(tokens, at + 2, &path, out),
            // A turbofish or the like ends the path.
            _ => break,
        }
        at += 2;
    }
    out.push(Path { segments: path, line });
    at
}

/// Adds the elements of a group, from after its `{`, to `out`, and returns the index after its `}`.
fn group(tokens: &[At<'_>], mut at: usize, base: &[String], out: &mut Vec<Path>) -> usize {
    while let Some((token, line)) = tokens.get(at) {
        at = match token {
            Token::Mark('}') => return at + 1,
            Token::Word("as") => at + 2,
            Token::Word(w) => {
                let mut path = base.to_vec();
                match *w {
                    "self" => {}
                    "super" => path = parent(path),
                    w => path.push(w.to_owned()),
                }
                if matches!(tokens.get(at + 1), Some((Token::PathSep, _))) {
                    follow(tokens, at + 1, path, out)
                } else {
                    out.push(Path { segments: path, line: *line });
                    at + 1
                }
            }
            Token::Mark('*') => {
                let mut path = base.to_vec();
                path.push("*".to_owned());
                out.push(Path { segments: path, line: *line });
                at + 1
            }
            _ => at + 1,
        };
    }
    at
}
