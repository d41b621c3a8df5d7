//! The string literals of the program's source: what it can say.

use std::fs;
use std::path::Path;

/// Those of `src/`, without the embedded cloud and without unit tests, with `…` in place of what is
/// filled in.
pub fn of_the_program() -> Vec<String> {
    let mut found = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

fn collect(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !["sandbox", "tests"].iter().any(|other| path.ends_with(other)) {
                collect(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path).unwrap();
            let source = source.split("#[cfg(test)]\nmod tests").next().unwrap();
            found.extend(of(source));
        }
    }
}

/// Those of one source text.
pub fn of(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find(['"', '\'', '/']) {
        let (before, from) = rest.split_at(at);
        if from.starts_with("//") {
            rest = from.split_once('\n').map_or("", |(_, rest)| rest);
        } else if from.starts_with("'\"'") || from.starts_with("'\\\"'") {
            rest = from[1..].split_once('\'').map_or("", |(_, rest)| rest);
        } else if let Some(inside) = from.strip_prefix('"') {
            let hashes = before.len() - before.trim_end_matches('#').len();
            let is_raw = before[..before.len() - hashes].ends_with('r');
            let (literal, length) = if is_raw { raw(inside, hashes) } else { escaped(inside) };
            found.push(without_arguments(&literal));
            rest = &inside[length..];
        } else {
            rest = &from[1..];
        }
    }
    found
}

/// A raw literal and its length with the end.
fn raw(from: &str, hashes: usize) -> (String, usize) {
    let end = format!("\"{}", "#".repeat(hashes));
    let at = from.find(&end).unwrap_or(from.len());
    (from[..at].to_owned(), (at + end.len()).min(from.len()))
}

/// A literal, as the compiler reads it, and its length with the end.
fn escaped(from: &str) -> (String, usize) {
    let mut literal = String::new();
    let mut chars = from.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (literal, at + 1),
            '\\' => match chars.next() {
                // The compiler leaves out the indentation of the next line.
                Some((at, '\n')) => {
                    let rest = from[at..].trim_start();
                    chars = from[from.len() - rest.len()..].char_indices();
                    let (more, length) = escaped(chars.as_str());
                    return (literal + &more, from.len() - rest.len() + length);
                }
                Some((_, 'n')) => literal.push('\n'),
                Some((_, other)) => literal.push(other),
                None => break,
            },
            other => literal.push(other),
        }
    }
    (literal, from.len())
}

/// `{name:?}` is what nobody can know beforehand.
fn without_arguments(literal: &str) -> String {
    let mut text = String::new();
    let mut rest = literal;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        if let Some(after) = after.strip_prefix('{') {
            text.push('{');
            rest = after;
        } else {
            text.push('…');
            rest = after.split_once('}').map_or("", |(_, rest)| rest);
        }
    }
    text.push_str(rest);
    text.replace("}}", "}")
}

#[test]
fn literals_are_read_as_the_compiler_reads_them() {
    let source =
        "f('\"', \"one {a} \\\n      \\\"two\\\"\", r#\"raw \"x\" {{}}\"#); // \"no\"\ng(\"b\")";
    assert_eq!(of(source), ["one … \"two\"", "raw \"x\" {}", "b"]);
}
