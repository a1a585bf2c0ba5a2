//! The prefetch list's source: paths and globs, in the order in which a start needs them.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};
use serde::Serialize;

use crate::error::Error;
use crate::merge::{FileId, Kind, Merge, NodeRef};

/// Lines of a list: a start opens thousands of files at most.
const MAX_PATTERNS: usize = 1_000_000;
/// Unmatched lines that are named; the rest is counted.
const MAX_UNMATCHED: usize = 100;

/// Globs among them: each has a compiled expression of some kilobytes, and looks at every path of the tree.
const MAX_GLOBS: usize = 1024;

/// The path that a line names, if it is no glob: what stands for itself behind a backslash is no special character.
fn literal(line: &[u8]) -> Option<Vec<u8>> {
    let mut path = Vec::with_capacity(line.len());
    let mut bytes = line.iter();
    while let Some(byte) = bytes.next() {
        path.push(match byte {
            b'\\' => *bytes.next()?,
            b'*' | b'?' | b'[' | b'{' => return None,
            byte => *byte,
        });
    }
    Some(path)
}

/// Paths and globs, in order.
#[derive(Clone, Debug, Default)]
pub struct PrefetchList {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    /// Its number in the list, from 1.
    line: usize,
    text: Vec<u8>,
    /// Without one it is a path.
    glob: Option<GlobMatcher>,
}

/// Lines of a prefetch list that name no file of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Unmatched {
    /// How many they are.
    pub count: u64,
    /// The first 100 of them, each with its number: `12: /usr/bin/x`.
    pub lines: Vec<String>,
}

impl Unmatched {
    fn add(&mut self, pattern: &Pattern) {
        self.count += 1;
        if self.lines.len() < MAX_UNMATCHED {
            self.lines.push(format!("{}: {}", pattern.line, pattern.text.escape_ascii()));
        }
    }
}

impl PrefetchList {
    /// Parses a list: a line each, empty lines and those that begin with `#` ignored. A line with one of `*?[{` is a glob
    /// over whole paths (`*` stays within a directory, `**` does not), unless a backslash stands before it.
    ///
    /// # Errors
    /// A glob that cannot be read, with its line number; more than a million lines, or more than 1024 globs.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let (mut patterns, mut globs) = (Vec::new(), 0);
        for (number, line) in text.split(|b| *b == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            if patterns.len() == MAX_PATTERNS {
                return Err(Error::Options(format!("the prefetch list has more than {MAX_PATTERNS} lines")));
            }
            let fail =
                |why: &dyn std::fmt::Display| Error::Options(format!("prefetch list, line {}: {why}", number + 1));
            let path = literal(line);
            let glob = match &path {
                Some(_) => None,
                None => {
                    globs += 1;
                    if globs > MAX_GLOBS {
                        return Err(fail(&format_args!("more than {MAX_GLOBS} globs")));
                    }
                    let text = std::str::from_utf8(line).map_err(|e| fail(&e))?;
                    let rooted = format!("/{}", text.trim_start_matches('/'));
                    let glob = GlobBuilder::new(&rooted).literal_separator(true).backslash_escape(true).build();
                    Some(glob.map_err(|e| fail(&e))?.compile_matcher())
                }
            };
            patterns.push(Pattern { line: number + 1, text: path.unwrap_or_else(|| line.to_vec()), glob });
        }
        Ok(Self { patterns })
    }

    /// Whether there is nothing to prefetch.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The files of the tree that the list names, each once, in the list's order, and the lines that name none. Symbolic
    /// links are followed, and a directory stands for all files below it.
    pub(crate) fn files(&self, tree: &mut Merge) -> (Vec<FileId>, Unmatched) {
        let mut seen = HashSet::new();
        let mut files = Vec::new();
        let mut unmatched = Unmatched::default();
        let mut globbed = self.glob_matches(tree).into_iter();
        for pattern in &self.patterns {
            let paths = match pattern.glob {
                None => vec![pattern.text.clone()],
                Some(_) => globbed.next().unwrap_or_default(),
            };
            let mut names_none = true;
            for node in paths.iter().filter_map(|path| tree.resolve(path)).collect::<Vec<_>>() {
                files_below(tree, node, &mut |id| {
                    names_none = false;
                    if seen.insert(id) {
                        files.push(id);
                    }
                });
            }
            if names_none {
                unmatched.add(pattern);
            }
        }
        (files, unmatched)
    }

    /// The paths that each glob matches, in one pass over the tree.
    fn glob_matches(&self, tree: &Merge) -> Vec<Vec<Vec<u8>>> {
        let globs: Vec<&GlobMatcher> = self.patterns.iter().filter_map(|pattern| pattern.glob.as_ref()).collect();
        let mut matches = vec![Vec::new(); globs.len()];
        if !globs.is_empty() {
            tree.visit(tree.root(), &mut Vec::new(), &mut |path, _| {
                let as_path = Path::new(OsStr::from_bytes(path));
                for (glob, found) in globs.iter().zip(&mut matches) {
                    if glob.is_match(as_path) {
                        found.push(path.to_vec());
                    }
                }
            });
        }
        matches
    }
}

fn files_below(tree: &Merge, node: NodeRef, add: &mut impl FnMut(FileId)) {
    tree.visit(node, &mut Vec::new(), &mut |_, node| {
        if let Kind::File { id, .. } = node.kind {
            add(id);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_names_are_paths_and_globs_are_bounded() {
        for (line, path) in [("/a/b", "/a/b"), (r"/app/\[slug\].js", "/app/[slug].js"), (r"\#a\\b", r"#a\b")] {
            assert_eq!(literal(line.as_bytes()).as_deref(), Some(path.as_bytes()), "{line}");
        }
        for glob in ["*", "a?", r"\[[ab]", "{a,b}", r"a\"] {
            assert_eq!(literal(glob.as_bytes()), None, "{glob}");
        }
        let many = |line: &str, count: usize| PrefetchList::parse(format!("{line}\n").repeat(count).as_bytes());
        assert!(many(r"/\[a\]", 100_000).is_ok() && many("/*", MAX_GLOBS).is_ok());
        let error = many("/*", MAX_GLOBS + 1).unwrap_err().to_string();
        assert!(error.contains("line 1025: more than 1024 globs"), "{error}");
    }
}
