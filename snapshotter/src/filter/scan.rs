//! Words, operators and quoted strings of a filter.

use super::Fault;

/// A piece of a filter.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// The name of a field, or a value that follows an operator.
    Word(&'a str),
    /// What was in quotes, with its escapes resolved.
    Quoted {
        /// Which.
        quote: char,
        /// The string.
        text: String,
    },
    /// Characters of which operators are made.
    Operator(&'a str),
    /// A dot or comma.
    Separator,
    /// There is nothing more.
    End,
}

/// Takes a filter apart.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    input: &'a str,
    position: usize,
    /// An operator was read, so that a value may follow, in which more characters are allowed than in a field.
    value: bool,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(input: &'a str) -> Self {
        Self { input, position: 0, value: false }
    }

    /// Bytes read.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// The next character, whatever it is.
    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// The next piece and where it begins; white space before it is skipped.
    pub(super) fn token(&mut self) -> Result<(usize, Token<'a>), Fault> {
        self.take_while(char::is_whitespace);
        let start = self.position;
        let token = match self.peek() {
            None => Token::End,
            Some(quote @ ('"' | '/' | '|')) => Token::Quoted { quote, text: self.quoted(quote)? },
            Some(',' | '.') => {
                self.position += 1;
                self.value = false;
                Token::Separator
            }
            Some('=' | '!' | '~') => {
                self.value = true;
                Token::Operator(self.take_while(|c| matches!(c, '=' | '!' | '~')))
            }
            Some(_) if self.value => {
                self.value = false;
                Token::Word(self.take_while(|c| c != ',' && !c.is_whitespace() && !c.is_control()))
            }
            Some(_) => Token::Word(self.take_while(|c| c == '_' || c.is_ascii_alphanumeric())),
        };
        if token == Token::Word("") {
            return Err((start, "there is a character that has no place here"));
        }
        Ok((start, token))
    }

    fn rest(&self) -> &'a str {
        self.input.get(self.position..).unwrap_or_default()
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.position += length;
        rest.split_at(length).0
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.position += next.len_utf8();
        Some(next)
    }

    /// A string as in Go's sources; `\x` and octal escapes stand for bytes.
    fn quoted(&mut self, quote: char) -> Result<String, Fault> {
        let start = self.position;
        self.next();
        let mut bytes = Vec::new();
        loop {
            match self.next() {
                None | Some('\n') => return Err((start, "the quote does not end")),
                Some(end) if end == quote => break,
                Some('\\') => self.escape(quote, &mut bytes)?,
                Some(plain) => push(&mut bytes, plain),
            }
        }
        String::from_utf8(bytes).map_err(|_| (start, "the quoted string is not UTF-8"))
    }

    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), Fault> {
        let start = self.position;
        let wrong = (start, "there is no such escape");
        match self.next().ok_or(wrong)? {
            'a' => bytes.push(0x07),
            'b' => bytes.push(0x08),
            'f' => bytes.push(0x0c),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'v' => bytes.push(0x0b),
            '\\' => bytes.push(b'\\'),
            'x' => bytes.push(u8::try_from(self.number(16, 2)?).map_err(|_| wrong)?),
            'u' => push(bytes, char::from_u32(self.number(16, 4)?).ok_or(wrong)?),
            'U' => push(bytes, char::from_u32(self.number(16, 8)?).ok_or(wrong)?),
            '0'..='7' => {
                self.position = start;
                bytes.push(u8::try_from(self.number(8, 3)?).map_err(|_| wrong)?);
            }
            other if other == quote => push(bytes, other),
            _ => return Err(wrong),
        }
        Ok(())
    }

    /// Exactly so many digits.
    fn number(&mut self, base: u32, digits: u32) -> Result<u32, Fault> {
        let wrong = (self.position, "digits are missing in an escape");
        (0..digits).try_fold(0_u32, |number, _| {
            let digit = self.next().and_then(|c| c.to_digit(base)).ok_or(wrong)?;
            number.checked_mul(base).and_then(|number| number.checked_add(digit)).ok_or(wrong)
        })
    }
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}
