//! Which of this machine's files go into which layer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Larger files would fill a layer by themselves.
const MAX_FILE: u64 = 32 * 1024 * 1024;
/// As many symlinks as the kernel follows in one path.
const MAX_LINKS: u32 = 40;

/// Chooses files layer by layer; a path is in one layer at most.
#[derive(Default)]
pub(crate) struct Picker {
    taken: BTreeSet<PathBuf>,
    layer: BTreeMap<PathBuf, fs::Metadata>,
}

impl Picker {
    /// Ends the layer and hands over its files and links, by absolute path.
    pub(crate) fn finish_layer(&mut self) -> BTreeMap<PathBuf, fs::Metadata> {
        let layer = std::mem::take(&mut self.layer);
        self.taken.extend(layer.keys().cloned());
        layer
    }

    /// Adds a file under the name given, and every symlink on the way to it. A file that does not exist is left out.
    pub(crate) fn add(&mut self, path: &Path) {
        // What is not there or not readable is not in the image.
        let _ = self.add_following(path);
    }

    fn add_following(&mut self, path: &Path) -> io::Result<()> {
        let mut pending = path.to_path_buf();
        for _ in 0..MAX_LINKS {
            let Some(next) = self.add_until_link(&pending)? else { return Ok(()) };
            pending = next;
        }
        Ok(())
    }

    /// Walks a path until a symlink; answers where the rest of the walk leads.
    fn add_until_link(&mut self, path: &Path) -> io::Result<Option<PathBuf>> {
        let mut here = PathBuf::from("/");
        let mut components = path.components();
        while let Some(component) = components.next() {
            match component {
                Component::Normal(name) => here.push(name),
                // `here` holds no symlink, so that its parent is where `..` leads.
                Component::ParentDir => _ = here.pop(),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            }
            let metadata = here.symlink_metadata()?;
            if metadata.is_symlink() {
                let target = here.read_link()?;
                self.insert(here.clone(), metadata);
                here.pop();
                return Ok(Some(here.join(target).join(components.as_path())));
            }
            if metadata.is_file() {
                self.insert(here.clone(), metadata);
            }
        }
        Ok(None)
    }

    /// Adds what lies below a directory, in order of names, until `budget` bytes are used up; answers what is left.
    /// What another layer has already is passed over, and so are files nobody but their owner may read, special
    /// files, and files over 32 MiB.
    pub(crate) fn add_tree(&mut self, directory: &Path, mut budget: u64) -> u64 {
        let mut entries: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            if budget == 0 {
                break;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                budget = self.add_tree(&entry.path(), budget);
            } else if metadata.is_symlink() {
                self.insert(entry.path(), metadata);
            } else if metadata.is_file()
                && metadata.len() <= MAX_FILE.min(budget)
                && fs::File::open(entry.path()).is_ok()
            {
                let length = metadata.len();
                if self.insert(entry.path(), metadata) {
                    budget -= length;
                }
            }
        }
        budget
    }

    fn insert(&mut self, path: PathBuf, metadata: fs::Metadata) -> bool {
        !self.taken.contains(&path) && self.layer.insert(path, metadata).is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(layer: &BTreeMap<PathBuf, fs::Metadata>, root: &Path) -> Vec<String> {
        layer.keys().filter_map(|path| path.strip_prefix(root).ok()).map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn links_on_the_way_are_taken_along() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::write(root.join("usr/lib/x.so.1"), "x").unwrap();
        symlink("usr/lib", root.join("lib")).unwrap();
        symlink("../lib/x.so.1", root.join("usr/lib/x.so")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let mut picker = Picker::default();
        picker.add(&root.join("lib/x.so"));
        picker.add(&root.join("loop"));
        picker.add(&root.join("missing"));
        assert_eq!(names(&picker.finish_layer(), &root), ["lib", "loop", "usr/lib/x.so", "usr/lib/x.so.1"]);
    }

    #[test]
    fn a_budget_is_kept_and_nothing_is_taken_twice() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().canonicalize().unwrap();
        fs::create_dir(root.join("d")).unwrap();
        for (name, length) in [("a", 10), ("b", 100), ("d/c", 20), ("e", 30)] {
            fs::write(root.join(name), vec![0; length]).unwrap();
        }
        let mut picker = Picker::default();
        assert_eq!(picker.add_tree(&root, 50), 20);
        assert_eq!(names(&picker.finish_layer(), &root), ["a", "d/c"]);
        assert_eq!(picker.add_tree(&root, 1000), 870);
        assert_eq!(names(&picker.finish_layer(), &root), ["b", "e"]);
    }
}
