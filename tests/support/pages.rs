//! The documentation as tests see it: pages, their code blocks, and what the comment above a block
//! says about it.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs;
use std::path::PathBuf;

/// The README or a page of `docs/`.
pub struct Page {
    /// As messages call it: `docs/swarm.md`.
    pub name: String,
    pub text: String,
}

/// A fenced block.
pub struct Block {
    /// `sh`, `json`, `text`, …
    pub language: String,
    pub text: String,
    /// Of the fence, from 1.
    pub line: usize,
    /// The HTML comment right above the fence.
    pub comment: Option<String>,
}

/// Where a page lies.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// All pages of `docs/`, by name, and the README.
pub fn all() -> Vec<Page> {
    let mut names: Vec<String> = fs::read_dir(path("docs"))
        .unwrap()
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().into_string().unwrap()))
        .filter(|name| name.ends_with(".md"))
        .collect();
    names.sort();
    names.push("README.md".to_owned());
    names.into_iter().map(Page::read).collect()
}

impl Page {
    pub fn read(name: impl Into<String>) -> Self {
        let name = name.into();
        let text = fs::read_to_string(path(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        Self { name, text }
    }

    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut lines = self.text.lines().enumerate();
        let mut above = "";
        while let Some((number, line)) = lines.next() {
            // In a list it is indented.
            let (indent, line) = line.split_at(line.len() - line.trim_start().len());
            if let Some(language) = line.strip_prefix("```") {
                let comment = above.strip_prefix("<!-- ").and_then(|c| c.strip_suffix(" -->"));
                let inside: Vec<&str> = lines
                    .by_ref()
                    .map(|(_, line)| line.strip_prefix(indent).unwrap_or(line))
                    .take_while(|line| *line != "```")
                    .collect();
                blocks.push(Block {
                    language: language.to_owned(),
                    text: inside.join("\n") + "\n",
                    line: number + 1,
                    comment: comment.map(str::to_owned),
                });
            }
            above = line;
        }
        blocks
    }

    /// What stands between `<!-- NAME: … -->` and `<!-- end of NAME -->` must be `wanted`, which the
    /// program says; with `UPDATE_DOCS=1` it is written there.
    pub fn assert_generated(&self, part: &str, wanted: &str) {
        let begin = self
            .text
            .find(&format!("<!-- {part}:"))
            .map_or(0, |at| at + self.text[at..].find('\n').map_or(0, |length| length + 1));
        let end = self.text.find(&format!("<!-- end of {part} -->")).unwrap_or(0);
        assert!(0 < begin && begin <= end, "{} has no part \"{part}\"", self.name);
        if self.text[begin..end] == *wanted {
            return;
        }
        assert!(
            std::env::var("UPDATE_DOCS").as_deref() == Ok("1"),
            "{}: \"{part}\" is not what the program says. UPDATE_DOCS=1 cargo test --test docs \
             writes it:\n{wanted}",
            self.name
        );
        let text = format!("{}{wanted}{}", &self.text[..begin], &self.text[end..]);
        fs::write(path(&self.name), text).unwrap();
    }
}
