//! From text to syntax tree, macros included.

use super::ast::{Expr, Kind, Literal, Macro, Problem};
use super::lexer::{Token, tokens};

/// How deep expressions may nest: everything that walks them is recursive.
const MAX_DEPTH: usize = 100;
/// Longest text of an expression, in bytes.
const MAX_LENGTH: usize = 100_000;

/// Words that no name may be.
const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Binary operators by precedence, loosest first; `&&`, `||` and `?:` stand apart.
const LEVELS: [&[(&str, &str)]; 3] = [
    &[
        ("==", "_==_"),
        ("!=", "_!=_"),
        ("<", "_<_"),
        ("<=", "_<=_"),
        (">", "_>_"),
        (">=", "_>=_"),
        ("in", "@in"),
    ],
    &[("+", "_+_"), ("-", "_-_")],
    &[("*", "_*_"), ("/", "_/_"), ("%", "_%_")],
];

/// Parses an expression.
pub(super) fn parse(source: &str) -> Result<Expr, Problem> {
    if source.len() > MAX_LENGTH {
        return Err(Problem::new(0, format!("expression is longer than {MAX_LENGTH} bytes")));
    }
    let mut parser = Parser {
        tokens: tokens(source)?,
        next: 0,
        depth: 0,
    };
    let expr = parser.expr()?;
    match parser.peek() {
        Token::End => Ok(expr),
        _ => Err(parser.unexpected("<EOF>")),
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

fn call(at: usize, function: &str, args: Vec<Expr>) -> Expr {
    Expr {
        at,
        kind: Kind::Call {
            function: function.to_owned(),
            target: None,
            args,
        },
    }
}

impl Parser {
    fn peek(&self) -> &Token {
        // The last token is End and is never passed.
        &self.tokens[self.next.min(self.tokens.len() - 1)].1
    }

    fn at(&self) -> usize {
        self.tokens[self.next.min(self.tokens.len() - 1)].0
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(s) if *s == sign)
    }

    fn accept(&mut self, sign: &str) -> bool {
        let found = self.is(sign);
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), Problem> {
        if self.accept(sign) {
            Ok(())
        } else {
            Err(self.unexpected(&format!("'{sign}'")))
        }
    }

    fn unexpected(&self, wanted: &str) -> Problem {
        let found = match self.peek() {
            Token::End => "<EOF>".to_owned(),
            Token::Sign(sign) => (*sign).to_owned(),
            Token::Name(name) => name.clone(),
            Token::Literal(Literal::String(text)) => format!("\"{text}\""),
            Token::Literal(literal) => format!("{literal:?}"),
        };
        Problem::new(
            self.at(),
            format!("Syntax error: mismatched input '{found}' expecting {wanted}"),
        )
    }

    fn deeper(&mut self) -> Result<(), Problem> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Problem::new(
                self.at(),
                format!("expression recursion limit exceeded: {MAX_DEPTH}"),
            ));
        }
        Ok(())
    }

    fn expr(&mut self) -> Result<Expr, Problem> {
        self.deeper()?;
        let condition = self.or()?;
        let expr = if self.is("?") {
            let at = self.at();
            self.next += 1;
            let yes = self.or()?;
            self.expect(":")?;
            let no = self.expr()?;
            Expr {
                at,
                kind: Kind::If(Box::new([condition, yes, no])),
            }
        } else {
            condition
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn or(&mut self) -> Result<Expr, Problem> {
        self.chain("||", Kind::Or, Self::and)
    }

    fn and(&mut self) -> Result<Expr, Problem> {
        self.chain("&&", Kind::And, |parser| parser.binary(0))
    }

    /// Operands of one logical operator, side by side: a long chain is not deep.
    fn chain(
        &mut self,
        sign: &str,
        kind: fn(Vec<Expr>) -> Kind,
        operand: fn(&mut Self) -> Result<Expr, Problem>,
    ) -> Result<Expr, Problem> {
        let first = operand(self)?;
        if !self.is(sign) {
            return Ok(first);
        }
        let at = self.at();
        let mut operands = vec![first];
        while self.accept(sign) {
            operands.push(operand(self)?);
        }
        Ok(Expr {
            at,
            kind: kind(operands),
        })
    }

    fn binary(&mut self, level: usize) -> Result<Expr, Problem> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut left = self.binary(level + 1)?;
        let depth = self.depth;
        while let Some((sign, name)) = operators.iter().find(|(sign, _)| self.is(sign)) {
            // Each one nests the left side deeper.
            self.deeper()?;
            let at = self.at();
            self.expect(sign)?;
            let right = self.binary(level + 1)?;
            left = call(at, name, vec![left, right]);
        }
        self.depth = depth;
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expr, Problem> {
        let at = self.at();
        let depth = self.depth;
        let mut signs = Vec::new();
        while let Token::Sign(sign @ ("!" | "-")) = *self.peek() {
            self.deeper()?;
            signs.push(sign);
            self.next += 1;
        }
        let mut expr = self.member()?;
        if let Kind::Literal(literal) = &mut expr.kind {
            // The sign belongs to the number.
            if signs.last() == Some(&"-") {
                match literal {
                    Literal::Int(number) => *number = number.wrapping_neg(),
                    Literal::Double(number) => *number = -*number,
                    _ => signs.push("-"),
                }
                signs.pop();
            } else if *literal == Literal::Int(i64::MIN) {
                return Err(Problem::new(at, "invalid int literal"));
            }
        }
        for sign in signs.iter().rev() {
            let name = if *sign == "!" { "!_" } else { "-_" };
            expr = call(at, name, vec![expr]);
        }
        self.depth = depth;
        Ok(expr)
    }

    fn member(&mut self) -> Result<Expr, Problem> {
        let mut expr = self.primary()?;
        let depth = self.depth;
        loop {
            let at = self.at();
            if self.is(".") || self.is(".?") {
                self.deeper()?;
                let optional = self.is(".?");
                self.next += 1;
                let field = self.name(true)?;
                if !optional && self.is("(") {
                    let call_at = self.at();
                    let args = self.arguments()?;
                    expr = method(call_at, field, expr, args)?;
                } else {
                    let of = Box::new(expr);
                    let kind = Kind::Select { of, field, optional };
                    expr = Expr { at, kind };
                }
            } else if self.is("[") || self.is("[?") {
                self.deeper()?;
                let optional = self.is("[?");
                self.next += 1;
                let index = Box::new(self.expr()?);
                self.expect("]")?;
                let of = Box::new(expr);
                let kind = Kind::Index { of, index, optional };
                expr = Expr { at, kind };
            } else {
                break;
            }
        }
        self.depth = depth;
        Ok(expr)
    }

    fn name(&mut self, field: bool) -> Result<String, Problem> {
        match self.peek() {
            Token::Name(name) if field || !RESERVED.contains(&name.as_str()) => {
                let name = name.clone();
                self.next += 1;
                Ok(name)
            }
            Token::Name(name) => Err(Problem::new(self.at(), format!("reserved identifier: {name}"))),
            _ => Err(self.unexpected("IDENTIFIER")),
        }
    }

    fn primary(&mut self) -> Result<Expr, Problem> {
        let at = self.at();
        let kind = match self.peek().clone() {
            Token::Literal(literal) => {
                self.next += 1;
                Kind::Literal(literal)
            }
            Token::Sign("(") => {
                self.next += 1;
                let expr = self.expr()?;
                self.expect(")")?;
                return Ok(expr);
            }
            Token::Sign("[" | "[?") => self.list()?,
            Token::Sign("{" | "{?") => self.map()?,
            Token::Sign(".") | Token::Name(_) => {
                self.accept(".");
                let name = self.name(false)?;
                if !self.is("(") {
                    Kind::Name(name)
                } else {
                    let at = self.at();
                    let args = self.arguments()?;
                    return function(at, name, args);
                }
            }
            _ => return Err(self.unexpected("an expression")),
        };
        Ok(Expr { at, kind })
    }

    fn arguments(&mut self) -> Result<Vec<Expr>, Problem> {
        self.expect("(")?;
        let mut args = Vec::new();
        while !self.is(")") {
            args.push(self.expr()?);
            if !self.accept(",") {
                break;
            }
        }
        self.expect(")")?;
        Ok(args)
    }

    fn list(&mut self) -> Result<Kind, Problem> {
        let mut optional = self.is("[?");
        self.next += 1;
        let mut items = Vec::new();
        while !self.is("]") {
            optional |= self.accept("?");
            items.push((self.expr()?, optional));
            optional = false;
            if !self.accept(",") {
                break;
            }
        }
        self.expect("]")?;
        Ok(Kind::List(items))
    }

    fn map(&mut self) -> Result<Kind, Problem> {
        let mut optional = self.is("{?");
        self.next += 1;
        let mut entries = Vec::new();
        while !self.is("}") {
            optional |= self.accept("?");
            let key = self.expr()?;
            self.expect(":")?;
            entries.push((key, self.expr()?, optional));
            optional = false;
            if !self.accept(",") {
                break;
            }
        }
        self.expect("}")?;
        Ok(Kind::Map(entries))
    }
}

fn function(at: usize, name: String, mut args: Vec<Expr>) -> Result<Expr, Problem> {
    if name == "has" && args.len() == 1 {
        let arg = args.remove(0);
        return match arg.kind {
            Kind::Select {
                of,
                field,
                optional: false,
            } => Ok(Expr {
                at,
                kind: Kind::Has { of, field },
            }),
            _ => Err(Problem::new(arg.at, "invalid argument to has() macro")),
        };
    }
    Ok(call(at, &name, args))
}

fn method(at: usize, name: String, target: Expr, mut args: Vec<Expr>) -> Result<Expr, Problem> {
    let Some((which, count)) = Macro::of(&name, args.len()) else {
        return Ok(Expr {
            at,
            kind: Kind::Call {
                function: name,
                target: Some(Box::new(target)),
                args,
            },
        });
    };
    let body = args.split_off(count);
    let mut names = Vec::with_capacity(count);
    for arg in args {
        match arg.kind {
            Kind::Name(name) if name != "__result__" && !names.contains(&name) => names.push(name),
            _ => return Err(Problem::new(arg.at, "argument must be a simple name")),
        }
    }
    Ok(Expr {
        at,
        kind: Kind::Macro {
            which,
            range: Box::new(target),
            names,
            body,
        },
    })
}
