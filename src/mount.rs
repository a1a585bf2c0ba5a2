//! `lazo mount`: show an image's tree at once, fetch what is read.

use std::path::PathBuf;

use crate::global::Global;

/// Mount a lazo image: its tree is there at once, its data comes as it is read
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image: docker://HOST/REPO[:TAG|@DIGEST], HOST/REPO:TAG or oci:DIR[:TAG]
    image: String,
    /// An existing directory to mount it at
    dir: PathBuf,
}

impl Args {
    pub(crate) fn run(self, _global: &Global) -> anyhow::Result<()> {
        anyhow::bail!("cannot mount {} at {} yet", self.image, self.dir.display())
    }
}
