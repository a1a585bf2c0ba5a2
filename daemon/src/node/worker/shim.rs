//! TEMP
use lazo_format::BlobIndex;
pub(super) struct PlainBlob;
impl PlainBlob {
    pub(super) fn path(&self) -> &std::path::Path {
        std::path::Path::new("/")
    }
}
pub(super) trait Shim {
    fn sealed(&self, _: BlobIndex) -> Option<PlainBlob> {
        None
    }
    fn start_sealing(&self) {}
}
impl Shim for lazo_storage::Reader {}
