//! The library's own sources, for tests of how it is written.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]
#![allow(clippy::allow_attributes, reason = "expect would fail in the binary that uses all of it")]

use std::path::Path;

/// A file of the library.
pub struct Source {
    /// From the package's root.
    pub path: String,
    pub text: String,
}

/// All files of the library but those that hold tests alone.
pub fn library() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = vec![];
    collect(root, &root.join("src"), &mut sources);
    assert!(sources.len() > 20, "only {} files found", sources.len());
    sources.retain(|source| {
        !source.path.ends_with("tests.rs")
            && !source.path.ends_with("_model.rs")
            && !source.path.contains("/tests/")
    });
    sources
}

fn collect(root: &Path, folder: &Path, sources: &mut Vec<Source>) {
    let mut entries: Vec<_> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(root, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a text");
            let path = path.strip_prefix(root).expect("below the root").to_string_lossy().replace('\\', "/");
            sources.push(Source { path, text });
        }
    }
}

impl Source {
    /// The room that the file belongs to; `None` for the crate's root.
    pub fn room(&self) -> Option<String> {
        let name = self.path.strip_prefix("src/")?.split('/').next()?;
        let name = name.trim_end_matches(".rs");
        (name != "lib").then(|| name.to_owned())
    }

    /// The lines but those of a test module that stands in the file, with their numbers.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let (mut inside, mut before) = (false, "");
        (1..).zip(self.text.lines()).filter(move |&(_, line)| {
            let for_tests = before.starts_with("#[cfg(") && before.contains("test");
            let begins = line.starts_with("mod tests {") && for_tests;
            let shipped = !inside && !begins;
            // What ends a module written out stands in the first column.
            inside = (inside || begins) && line != "}";
            before = line;
            shipped
        })
    }

    /// The same without comments and without what stands in string literals.
    pub fn code_lines(&self) -> impl Iterator<Item = (usize, String)> {
        self.lines().map(|(number, line)| (number, code_of(line)))
    }
}

/// A line without its comment, and with its string literals emptied.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => break,
            '"' => {
                code.push_str("\"\"");
                while let Some(inside) = chars.next() {
                    match inside {
                        '\\' => _ = chars.next(),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            // A character literal that would open a string or a comment.
            '\'' if matches!(chars.peek(), Some('"' | '/')) => {
                chars.by_ref().take(2).for_each(drop);
            }
            c => code.push(c),
        }
    }
    code
}
