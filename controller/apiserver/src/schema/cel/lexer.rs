//! Tokens.

use super::ast::{Literal, Problem};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Literal(Literal),
    Name(String),
    /// Operators and brackets.
    Sign(&'static str),
    End,
}

/// Longer ones first.
const SIGNS: [&str; 30] = [
    ".?", "[?", "{?", "&&", "||", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "<", ">", "!", "?", ":", "(", ")",
    "[", "]", "{", "}", ",", ".", "=", "&", "|",
];

/// Cuts a text into tokens, each with its place in characters.
pub(super) fn tokens(source: &str) -> Result<Vec<(usize, Token)>, Problem> {
    let mut lexer = Lexer {
        chars: source.chars().collect(),
        at: 0,
    };
    let mut tokens = Vec::new();
    loop {
        lexer.blanks();
        let at = lexer.at;
        let token = lexer.token()?;
        let end = token == Token::End;
        tokens.push((at, token));
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn blanks(&mut self) {
        while self.peek(0).is_ascii_whitespace() || (self.peek(0) == '/' && self.peek(1) == '/') {
            if self.peek(0) == '/' {
                while self.at < self.chars.len() && self.peek(0) != '\n' {
                    self.at += 1;
                }
            } else {
                self.at += 1;
            }
        }
    }

    fn token(&mut self) -> Result<Token, Problem> {
        let first = self.peek(0);
        if self.at >= self.chars.len() {
            return Ok(Token::End);
        }
        if first.is_ascii_digit() || (first == '.' && self.peek(1).is_ascii_digit()) {
            return self.number();
        }
        if let Some(text) = self.quoted()? {
            return Ok(text);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let name = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
            return Ok(match name.as_str() {
                "true" => Token::Literal(Literal::Bool(true)),
                "false" => Token::Literal(Literal::Bool(false)),
                "null" => Token::Literal(Literal::Null),
                "in" => Token::Sign("in"),
                _ => Token::Name(name),
            });
        }
        for sign in SIGNS {
            if sign.chars().enumerate().all(|(i, c)| self.peek(i) == c) {
                self.at += sign.len();
                return Ok(Token::Sign(sign));
            }
        }
        Err(self.wrong())
    }

    fn wrong(&self) -> Problem {
        let message = format!("Syntax error: token recognition error at: '{}'", self.peek(0));
        Problem::new(self.at, message)
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> String {
        let mut text = String::new();
        while self.at < self.chars.len() && accept(self.peek(0)) {
            text.push(self.peek(0));
            self.at += 1;
        }
        text
    }

    fn number(&mut self) -> Result<Token, Problem> {
        let start = self.at;
        let bad = |kind: &str| Problem::new(start, format!("invalid {kind} literal"));
        if self.peek(0) == '0' && matches!(self.peek(1), 'x' | 'X') {
            self.at += 2;
            let digits = self.take_while(|c| c.is_ascii_hexdigit());
            if self.unsigned() {
                let number = u64::from_str_radix(&digits, 16).map_err(|_| bad("uint"))?;
                return Ok(Token::Literal(Literal::Uint(number)));
            }
            let number = i64::from_str_radix(&digits, 16).map_err(|_| bad("int"))?;
            return Ok(Token::Literal(Literal::Int(number)));
        }
        let mut text = self.take_while(|c| c.is_ascii_digit());
        let mut whole = true;
        if self.peek(0) == '.' && self.peek(1).is_ascii_digit() {
            whole = false;
            self.at += 1;
            text.push('.');
            text += &self.take_while(|c| c.is_ascii_digit());
        }
        let sign = usize::from(matches!(self.peek(1), '+' | '-'));
        if matches!(self.peek(0), 'e' | 'E') && self.peek(1 + sign).is_ascii_digit() {
            whole = false;
            text.push('e');
            if sign == 1 {
                text.push(self.peek(1));
            }
            self.at += 1 + sign;
            text += &self.take_while(|c| c.is_ascii_digit());
        }
        if !whole {
            let number: f64 = text.parse().map_err(|_| bad("double"))?;
            return Ok(Token::Literal(Literal::Double(number)));
        }
        if self.unsigned() {
            return Ok(Token::Literal(Literal::Uint(text.parse().map_err(|_| bad("uint"))?)));
        }
        // The most negative number has no positive counterpart: the parser joins sign and digits.
        match text.parse::<u64>() {
            Ok(number) if number == 1 << 63 => Ok(Token::Literal(Literal::Int(i64::MIN))),
            Ok(number) => Ok(Token::Literal(Literal::Int(
                i64::try_from(number).map_err(|_| bad("int"))?,
            ))),
            Err(_) => Err(bad("int")),
        }
    }

    fn unsigned(&mut self) -> bool {
        let found = matches!(self.peek(0), 'u' | 'U');
        self.at += usize::from(found);
        found
    }

    /// A string or bytes literal: quotes of one or three, `r` for raw, `b` for bytes.
    fn quoted(&mut self) -> Result<Option<Token>, Problem> {
        let start = self.at;
        let (mut raw, mut bytes, mut prefix) = (false, false, 0);
        loop {
            match self.peek(prefix) {
                'r' | 'R' if !raw => raw = true,
                'b' | 'B' if !bytes => bytes = true,
                _ => break,
            }
            prefix += 1;
        }
        let quote = self.peek(prefix);
        if quote != '"' && quote != '\'' {
            return Ok(None);
        }
        self.at += prefix;
        let triple = self.peek(1) == quote && self.peek(2) == quote;
        let width = if triple { 3 } else { 1 };
        self.at += width;
        let mut out = Out::default();
        loop {
            let c = self.peek(0);
            if self.at >= self.chars.len() || (!triple && c == '\n') {
                let message = "Syntax error: unterminated string literal";
                return Err(Problem::new(start, message));
            }
            if c == quote && (0..width).all(|i| self.peek(i) == quote) {
                self.at += width;
                break;
            }
            self.at += 1;
            if c == '\\' && !raw {
                self.escape(bytes, &mut out)?;
            } else {
                out.push(c);
            }
        }
        let literal = if bytes {
            Literal::Bytes(out.0.into())
        } else {
            let text = String::from_utf8(out.0).map_err(|_| Problem::new(start, "invalid string literal"))?;
            Literal::String(text.into())
        };
        Ok(Some(Token::Literal(literal)))
    }

    fn escape(&mut self, bytes: bool, out: &mut Out) -> Result<(), Problem> {
        let bad = Problem::new(self.at - 1, "Syntax error: unable to unescape string");
        let c = self.peek(0);
        self.at += 1;
        let simple = match c {
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            '\\' | '\'' | '"' | '`' | '?' => c,
            _ => '\0',
        };
        if simple != '\0' {
            out.push(simple);
            return Ok(());
        }
        let (digits, radix) = match c {
            'x' | 'X' => (2, 16),
            'u' if !bytes => (4, 16),
            'U' if !bytes => (8, 16),
            '0'..='3' => (3, 8),
            _ => return Err(bad),
        };
        if radix == 8 {
            self.at -= 1;
        }
        let mut code = 0;
        for _ in 0..digits {
            let digit = self.peek(0).to_digit(radix).ok_or_else(|| bad.clone())?;
            code = code * radix + digit;
            self.at += 1;
        }
        if bytes {
            out.0.push(u8::try_from(code).map_err(|_| bad)?);
        } else {
            out.push(char::from_u32(code).ok_or(bad)?);
        }
        Ok(())
    }
}

/// The bytes of a literal.
#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn push(&mut self, c: char) {
        self.0.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
}
