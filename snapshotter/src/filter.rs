//! containerd's filter language, as far as snapshots have fields.
//!
//! ```text
//! filter    a list of expressions: one of them must hold; an empty list holds always
//! expression   selector ("," selector)*      all of them must hold; an empty one holds always
//! selector  field ("." field)* [operator value]      without an operator: the field is there
//! operator  "==" | "!=" | "~="      the last: the value is a regular expression that matches somewhere
//! field     [A-Za-z0-9_]+ | quoted
//! value     anything but "," and white space | quoted
//! quoted    a string of Go's, in double quotes; a regular expression may also stand between slashes or bars
//! ```
//!
//! The fields are `name`, `parent`, `kind` (`view`, `active`, `committed`) and `labels.KEY`. A field that is not there counts as empty for
//! `!=` and `~=`, and differs from every value for `==`.

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};

use self::scan::{Scanner, Token};

mod scan;
#[cfg(test)]
mod tests;

/// Longest list of expressions, bytes. containerd's own have some hundred.
const MAX_LENGTH: usize = 64 << 10;

/// Most regular expressions of a list, and most memory of each, bytes: a few characters, such as `\w{1000}`, can ask for megabytes.
const MAX_PATTERNS: usize = 16;
const MAX_PATTERN_SIZE: usize = 1 << 20;

/// An expression cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("the filter {expression:?} cannot be understood: {reason}, at byte {position}")]
pub struct FilterError {
    /// The whole expression.
    pub expression: String,
    /// Where it goes wrong, in bytes from its beginning.
    pub position: usize,
    /// How.
    pub reason: &'static str,
}

/// What a filter looks at.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    /// The snapshot's name.
    pub name: &'a str,
    /// Its parent's name, or nothing.
    pub parent: &'a str,
    /// `view`, `active` or `committed`.
    pub kind: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// A list of expressions.
#[derive(Debug)]
pub struct Filter(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
    /// A regular expression that is none, or too large, matches nothing.
    Never,
}

impl Filter {
    /// Parses a list of expressions.
    ///
    /// # Errors
    /// When one of them cannot be understood, they are longer than 64 KiB together, or have more than 16 regular expressions.
    pub fn parse<S: AsRef<str>>(expressions: &[S]) -> Result<Self, FilterError> {
        let (mut length, mut patterns) = (0_usize, 0);
        let parse = |expression: &S| {
            let expression = expression.as_ref();
            length = length.saturating_add(expression.len());
            let parsed = match length <= MAX_LENGTH {
                true => selectors(expression, &mut patterns),
                false => Err((0, "filters are longer than 64 KiB")),
            };
            parsed.map_err(|(position, reason)| FilterError { expression: expression.to_owned(), position, reason })
        };
        expressions.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a snapshot is wanted.
    #[must_use]
    pub fn matches(&self, fields: &Fields<'_>) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|selector| selector.matches(fields)))
    }
}

impl Selector {
    fn matches(&self, fields: &Fields<'_>) -> bool {
        let value = match self.path.split_first() {
            Some((first, rest)) => match first.as_str() {
                "name" => Some(fields.name),
                "parent" => Some(fields.parent),
                "kind" => Some(fields.kind),
                "labels" => fields.labels.get(&rest.join(".")).map(String::as_str),
                _ => None,
            },
            None => None,
        };
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
            Test::Matches(expression) => expression.is_match(value.unwrap_or_default()),
            Test::Never => false,
        }
    }
}

/// Where and why parsing fails.
type Fault = (usize, &'static str);

/// Adds to `patterns` the regular expressions that are there.
fn selectors(expression: &str, patterns: &mut usize) -> Result<Vec<Selector>, Fault> {
    let mut scanner = Scanner::new(expression);
    let mut all = Vec::new();
    if expression.is_empty() {
        return Ok(all);
    }
    loop {
        all.push(selector(&mut scanner, patterns)?);
        match scanner.peek() {
            None => return Ok(all),
            Some(',') => drop(scanner.token()?),
            Some(_) => return Err((scanner.position(), "a comma or the end was expected")),
        }
    }
}

fn selector(scanner: &mut Scanner<'_>, patterns: &mut usize) -> Result<Selector, Fault> {
    let mut path = vec![field(scanner)?];
    while scanner.peek() == Some('.') {
        scanner.token()?;
        path.push(field(scanner)?);
    }
    if matches!(scanner.peek(), None | Some(',')) {
        return Ok(Selector { path, test: Test::Present });
    }
    let (position, token) = scanner.token()?;
    let Token::Operator(operator) = token else { return Err((position, "an operator was expected")) };
    let test = match operator {
        "==" => Test::Equal(value(scanner, false)?),
        "!=" => Test::NotEqual(value(scanner, false)?),
        "~=" => {
            *patterns += 1;
            if *patterns > MAX_PATTERNS {
                return Err((position, "there are more than 16 regular expressions"));
            }
            expression(&value(scanner, true)?)
        }
        _ => return Err((position, "there is no such operator")),
    };
    Ok(Selector { path, test })
}

fn expression(text: &str) -> Test {
    match RegexBuilder::new(text).size_limit(MAX_PATTERN_SIZE).build() {
        Ok(expression) => Test::Matches(expression),
        Err(error) => {
            tracing::warn!(%error, "a filter has a regular expression that is none");
            Test::Never
        }
    }
}

fn field(scanner: &mut Scanner<'_>) -> Result<String, Fault> {
    match scanner.token()? {
        (_, Token::Word(word)) => Ok(word.to_owned()),
        (_, Token::Quoted { quote: '"', text }) => Ok(text),
        (position, _) => Err((position, "the name of a field was expected")),
    }
}

fn value(scanner: &mut Scanner<'_>, expression: bool) -> Result<String, Fault> {
    match scanner.token()? {
        (_, Token::Word(word)) => Ok(word.to_owned()),
        (_, Token::Quoted { quote, text }) if expression || quote == '"' => Ok(text),
        (position, Token::Quoted { .. }) => Err((position, "only regular expressions may be quoted in this way")),
        (position, _) => Err((position, "a value was expected")),
    }
}
