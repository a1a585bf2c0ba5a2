//! `lazo check`: every digest of an image, down to the last chunk.

use std::fmt::Write as _;

use anyhow::Context as _;
use indicatif::{HumanBytes, HumanCount, ProgressBar};
use lazo_format::Digest;
use lazo_registry::{ImageRef, Source};
use lazo_storage::check::{ImageReport, Progress, Report, check};

use crate::global::Global;
use crate::interrupt::interrupted;
use crate::output::{self, Reported};

/// Read a whole lazo image and verify every digest, down to the last chunk; exit code 1 if anything is wrong
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image: docker://HOST/REPO[:TAG|@DIGEST], HOST/REPO:TAG, oci:DIR[:TAG] or oci-archive:FILE[:TAG]; of one for
    /// several platforms, all are checked
    image: ImageRef,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let bar = Bar(output::byte_bar());
        let report = runtime.block_on(async {
            let checked = async {
                let source = Source::open(&self.image, &global.registry_options()?).await?;
                anyhow::Ok(check(&source, &bar).await?)
            };
            tokio::select! {
                report = checked => report,
                signal = interrupted() => Err(anyhow::anyhow!("stopped by {signal}")),
            }
        });
        runtime.shutdown_background();
        bar.0.finish_and_clear();
        let report = report.with_context(|| format!("cannot check {}", self.image))?;
        match self.json {
            true => output::print(format_args!("{}\n", serde_json::to_string_pretty(&report)?))?,
            false => output::print(describe(&report)?)?,
        }
        if report.is_good() { Ok(()) } else { Err(Reported.into()) }
    }
}

fn describe(report: &Report) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    for image in &report.images {
        describe_image(&mut text, image)?;
    }
    for other in &report.not_checked {
        writeln!(text, "not lazo's and not checked: {other}")?;
    }
    Ok(text)
}

fn describe_image(text: &mut String, image: &ImageReport) -> std::fmt::Result {
    let wrong = image.faults.len() as u64 + image.more_faults;
    let verdict = match wrong {
        0 => "good".to_owned(),
        1 => "1 fault".to_owned(),
        _ => format!("{wrong} faults"),
    };
    writeln!(text, "{} {}: {verdict}", image.platform.as_deref().unwrap_or("unknown platform"), image.manifest)?;
    for fault in &image.faults {
        writeln!(text, "  {fault}")?;
    }
    if image.more_faults > 0 {
        writeln!(text, "  and {} more faults", image.more_faults)?;
    }
    writeln!(
        text,
        "  tree   {} entries, {} of file content; bootstrap {}, its layer {}",
        HumanCount(image.entries),
        HumanBytes(image.file_bytes),
        HumanBytes(image.bootstrap_bytes),
        HumanBytes(image.bootstrap_layer_bytes)
    )?;
    write!(
        text,
        "  blobs  {}: {} chunks verified, {} stored, {} uncompressed",
        image.blobs,
        HumanCount(image.chunks),
        HumanBytes(image.stored_bytes),
        HumanBytes(image.device_bytes)
    )?;
    match image.blobs_known {
        0 => writeln!(text),
        known => writeln!(text, "; {known} of them found good above"),
    }
}

/// A progress bar on a terminal, nothing elsewhere.
struct Bar(ProgressBar);

impl Progress for Bar {
    fn begin(&self, blob: &Digest, bytes: u64) {
        self.0.reset();
        self.0.set_length(bytes);
        self.0.set_message(format!("blob {:.12}", blob.hex()));
    }

    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}
