//! JSON that others wrote, read as Go's `encoding/json` reads it, since containerd and every builder are written in Go.
//!
//! A field that is `null` is as good as one that is absent, a field's name counts in any case, bytes that are no UTF-8 become
//! U+FFFD, and nesting may be as deep as it likes. One thing is stricter: a field that is there twice is refused, because
//! readers differ in which of the two they take.
//!
//! Only the fields that are asked for are kept, so that memory follows from the code and not from the document. Errors name
//! the document, the way to the value, and the byte at which the value begins.

use std::{borrow::Cow, collections::HashMap, fmt};

use serde::{
    Deserializer as _,
    de::{Deserialize, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::error::{Error, Result};

/// Most elements of a list and most entries of a map. The longest lists in use are histories and layers, some hundreds.
const MAX_ELEMENTS: usize = 65_536;

/// The text of a document.
pub(crate) struct Json<'a> {
    what: &'a str,
    text: Cow<'a, str>,
}

impl<'a> Json<'a> {
    /// `what` names the document in errors.
    pub(crate) fn new(what: &'a str, bytes: &'a [u8]) -> Self {
        Self { what, text: String::from_utf8_lossy(bytes) }
    }

    /// The outermost value.
    ///
    /// # Errors
    /// When the text is no JSON.
    pub(crate) fn root(&self) -> Result<Value<'_>> {
        let raw: &RawValue = serde_json::from_str(&self.text).map_err(|e| Error::invalid(self.what, e))?;
        Ok(Value { json: self, path: String::new(), raw: raw.get() })
    }
}

/// A value in a document.
pub(crate) struct Value<'a> {
    json: &'a Json<'a>,
    /// The way to it, as `layers[2].size`; empty for the outermost value.
    path: String,
    raw: &'a str,
}

impl<'a> Value<'a> {
    /// An error about this value.
    pub(crate) fn error(&self, reason: impl fmt::Display) -> Error {
        let what = self.json.what;
        if self.path.is_empty() {
            return Error::invalid(what, reason);
        }
        let at = self.raw.as_ptr().addr() - self.json.text.as_ptr().addr();
        Error::invalid(format_args!("{what}: {} (byte {at})", self.path), reason)
    }

    fn expected(&self, expected: &str) -> Error {
        let found = match self.raw.as_bytes().first() {
            Some(b'"') => "a string",
            Some(b'{') => "an object",
            Some(b'[') => "a list",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            _ => "a number",
        };
        self.error(format_args!("expected {expected}, found {found}"))
    }

    pub(crate) fn is_null(&self) -> bool {
        self.raw == "null"
    }

    fn child(&self, path: String, raw: &'a RawValue) -> Self {
        Self { json: self.json, path, raw: raw.get() }
    }

    /// An object, of which only the fields in `names` count; `null` is one without fields.
    ///
    /// # Errors
    /// When it is no object, or a field is there twice.
    pub(crate) fn object(self, names: &'static [&'static str]) -> Result<Object<'a>> {
        if self.is_null() {
            return Ok(Object { fields: Vec::new(), own: self });
        }
        if !self.raw.starts_with('{') {
            return Err(self.expected("an object"));
        }
        let mut deserializer = serde_json::Deserializer::from_str(self.raw);
        let read = deserializer.deserialize_map(Fields(names)).map_err(|e| self.error(e))?;
        if let Some(name) = read.twice {
            return Err(self.error(format_args!("the field {name} is there twice")));
        }
        let prefix = if self.path.is_empty() { String::new() } else { format!("{}.", self.path) };
        let fields = read.fields.into_iter().map(|(name, raw)| (name, self.child(format!("{prefix}{name}"), raw)));
        let fields = fields.collect();
        Ok(Object { fields, own: self })
    }

    /// A list; `null` is an empty one.
    ///
    /// # Errors
    /// When it is no list, or has more than [`MAX_ELEMENTS`] elements.
    pub(crate) fn list(self) -> Result<Vec<Value<'a>>> {
        if self.is_null() {
            return Ok(Vec::new());
        }
        if !self.raw.starts_with('[') {
            return Err(self.expected("a list"));
        }
        let mut deserializer = serde_json::Deserializer::from_str(self.raw);
        let elements = deserializer.deserialize_seq(Elements).map_err(|e| self.error(e))?;
        if elements.len() > MAX_ELEMENTS {
            return Err(self.error(format_args!("it has more than {MAX_ELEMENTS} elements")));
        }
        let numbered = elements.into_iter().enumerate();
        Ok(numbered.map(|(number, raw)| self.child(format!("{}[{number}]", self.path), raw)).collect())
    }

    /// An object with any names in it; `null` is an empty one. Of a name that is there twice the last counts.
    ///
    /// # Errors
    /// When it is no object, or has more than [`MAX_ELEMENTS`] entries.
    pub(crate) fn map(self) -> Result<HashMap<String, Value<'a>>> {
        if self.is_null() {
            return Ok(HashMap::new());
        }
        if !self.raw.starts_with('{') {
            return Err(self.expected("an object"));
        }
        let entries: HashMap<String, &RawValue> = serde_json::from_str(self.raw).map_err(|e| self.error(e))?;
        if entries.len() > MAX_ELEMENTS {
            return Err(self.error(format_args!("it has more than {MAX_ELEMENTS} entries")));
        }
        let path = |name: &str| format!("{}[{name:?}]", self.path);
        Ok(entries.into_iter().map(|(name, raw)| (name.clone(), self.child(path(&name), raw))).collect())
    }

    /// A string; `null` is an empty one.
    pub(crate) fn text(&self) -> Result<String> {
        self.scalar("a string")
    }

    /// A boolean; `null` is false.
    pub(crate) fn boolean(&self) -> Result<bool> {
        self.scalar("true or false")
    }

    /// A whole number of any sign; `null` is 0.
    pub(crate) fn integer(&self) -> Result<i64> {
        self.scalar("a whole number")
    }

    fn scalar<T: Deserialize<'a> + Default>(&self, expected: &str) -> Result<T> {
        if self.is_null() {
            return Ok(T::default());
        }
        serde_json::from_str(self.raw).map_err(|_| self.expected(expected))
    }

    /// A list of strings.
    pub(crate) fn texts(self) -> Result<Vec<String>> {
        self.list()?.iter().map(Value::text).collect()
    }

    /// An object of strings.
    pub(crate) fn text_map(self) -> Result<HashMap<String, String>> {
        self.map()?.into_iter().map(|(name, value)| Ok((name, value.text()?))).collect()
    }
}

/// An object in a document.
pub(crate) struct Object<'a> {
    fields: Vec<(&'static str, Value<'a>)>,
    own: Value<'a>,
}

impl<'a> Object<'a> {
    /// A field, unless it is absent or taken before.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value<'a>> {
        let place = self.fields.iter().position(|(field, _)| *field == name)?;
        Some(self.fields.swap_remove(place).1)
    }

    /// What `read` makes of a field; its default when the field is absent.
    pub(crate) fn read<T: Default>(&mut self, name: &str, read: impl FnOnce(Value<'a>) -> Result<T>) -> Result<T> {
        self.take(name).map_or_else(|| Ok(T::default()), read)
    }

    /// The same for a field that must be there, `null` being none.
    pub(crate) fn need(&mut self, name: &str) -> Result<Value<'a>> {
        let found = self.take(name).filter(|value| !value.is_null());
        found.ok_or_else(|| self.own.error(format_args!("it has no {name}")))
    }

    /// An error about the object.
    pub(crate) fn error(&self, reason: impl fmt::Display) -> Error {
        self.own.error(reason)
    }
}

/// Whether Go takes `found` for the field `name`: case does not count, and two letters beyond ASCII fold to ASCII ones.
#[must_use]
pub fn is_field(found: &str, name: &str) -> bool {
    let fold = |letter: char| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    };
    found.chars().map(fold).eq(name.chars().map(fold))
}

/// Picks the fields of these names.
struct Fields(&'static [&'static str]);

struct Picked<'de> {
    fields: Vec<(&'static str, &'de RawValue)>,
    twice: Option<&'static str>,
}

impl<'de> Visitor<'de> for Fields {
    type Value = Picked<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut picked = Picked { fields: Vec::new(), twice: None };
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let Some(name) = self.0.iter().copied().find(|name| is_field(&key, name)) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if picked.fields.iter().any(|(known, _)| *known == name) {
                picked.twice = Some(name);
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            picked.fields.push((name, map.next_value()?));
        }
        Ok(picked)
    }
}

/// The elements of a list, at most one more than [`MAX_ELEMENTS`].
struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while elements.len() <= MAX_ELEMENTS
            && let Some(element) = list.next_element()?
        {
            elements.push(element);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(elements)
    }
}
