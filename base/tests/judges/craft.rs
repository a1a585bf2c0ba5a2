//! Writes archives exactly as told, oddities included.

/// A header block in the making. Fields are at the offsets of the format's specification.
#[derive(Clone)]
pub(crate) struct Head(pub(crate) [u8; 512]);

pub(crate) const USTAR: &[u8] = b"ustar\x0000";
pub(crate) const GNU: &[u8] = b"ustar  \0";
pub(crate) const V7: &[u8] = b"";

impl Head {
    pub(crate) fn new(magic: &[u8], kind: u8, name: &[u8], size: usize) -> Self {
        Self([0; 512])
            .put(0, name)
            .put(100, b"0000644\0")
            .put(108, b"0000001\0")
            .put(116, b"0000002\0")
            .put(124, format!("{size:011o}\0").as_bytes())
            .put(136, b"00000000003\0")
            .put(156, &[kind])
            .put(257, magic)
    }

    pub(crate) fn put(mut self, at: usize, field: &[u8]) -> Self {
        self.0[at..at + field.len()].copy_from_slice(field);
        self
    }

    /// The block with its checksum, which `sum` makes of a byte.
    pub(crate) fn summed(self, sum: impl Fn(u8) -> i64) -> Vec<u8> {
        let blank = self.put(148, b"        ");
        let sum: i64 = blank.0.iter().map(|byte| sum(*byte)).sum();
        blank.put(148, format!("{sum:06o}\0 ").as_bytes()).0.to_vec()
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.summed(i64::from)
    }

    /// The block, then data, then zeros.
    pub(crate) fn with(self, data: &[u8]) -> Vec<u8> {
        padded([self.done(), data.to_vec()].concat())
    }
}

/// An ordinary member.
pub(crate) fn member(kind: u8, name: &str, data: &[u8]) -> Vec<u8> {
    Head::new(USTAR, kind, name.as_bytes(), data.len()).with(data)
}

pub(crate) fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest + 1..rest + 20).find(|length| length.to_string().len() + rest == *length).expect("a length");
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// A PAX extended header of these records.
pub(crate) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    pax_body(b'x', &records.iter().map(|(key, value)| record(key.as_bytes(), value)).collect::<Vec<_>>().concat())
}

pub(crate) fn pax_body(kind: u8, body: &[u8]) -> Vec<u8> {
    Head::new(USTAR, kind, b"PaxHeaders/x", body.len()).with(body)
}

/// A long name or link target in GNU's manner.
pub(crate) fn gnu_long(kind: u8, text: &[u8]) -> Vec<u8> {
    Head::new(GNU, kind, b"././@LongLink", text.len()).with(text)
}

pub(crate) fn end() -> Vec<u8> {
    vec![0; 1024]
}
