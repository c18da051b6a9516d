//! What a server asks for with `WWW-Authenticate` (RFC 9110, section 11). Pure.

/// One challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    scheme: String,
    /// Names in lower case.
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Whether it is of this scheme.
    pub fn is(&self, scheme: &str) -> bool {
        self.scheme.eq_ignore_ascii_case(scheme)
    }

    /// A parameter by its name in lower case; of several the first.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// The challenges of one header. Commas stand between them as between their parameters: a word that no `=` follows is
/// a scheme where a comma, or nothing, is before it, and else the token of a scheme that has no parameters. Values may
/// lack their quotes whatever they hold. What cannot be read is left out.
pub fn parse(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = header;
    let mut begins = true;
    loop {
        rest = rest.trim_start_matches(blank);
        let Some(first) = rest.chars().next() else { return found };
        let (word, behind) = split(rest, |c| !is_token(c));
        if word.is_empty() {
            begins |= first == ',';
            rest = &rest[first.len_utf8()..];
            continue;
        }
        if let Some(behind) = behind.trim_start_matches(blank).strip_prefix('=') {
            let Some((value, behind)) = value(behind.trim_start_matches(blank)) else {
                return found;
            };
            if let Some(challenge) = found.last_mut() {
                challenge.parameters.push((word.to_ascii_lowercase(), value));
            }
            rest = behind;
        } else {
            if begins {
                found.push(Challenge {
                    scheme: word.to_owned(),
                    parameters: Vec::new(),
                });
            }
            rest = behind;
        }
        begins = false;
    }
}

/// A quoted or a plain value, and what follows it; `None` without the closing quote.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (plain, behind) = split(text, |c| c == ',' || blank(c));
        return Some((plain.to_owned(), behind));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            c => value.push(c),
        }
    }
    None
}

fn split(text: &str, ends: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(ends).unwrap_or(text.len()))
}

fn blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

/// RFC 9110, section 5.6.2.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(header: &str) -> Vec<(String, Vec<(String, String)>)> {
        let all = parse(header).into_iter();
        all.map(|challenge| (challenge.scheme, challenge.parameters)).collect()
    }

    fn is(scheme: &str, parameters: &[(&str, &str)]) -> (String, Vec<(String, String)>) {
        let parameters = parameters.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        (scheme.into(), parameters.collect())
    }

    #[test]
    fn challenges_are_read_as_rfc_9110_writes_them() {
        // Its own example, section 11.6.1.
        let header = r#"Basic realm="simple", Newauth realm="apps", type=1, title="Login to \"apps\"""#;
        let newauth = is(
            "Newauth",
            &[("realm", "apps"), ("type", "1"), ("title", "Login to \"apps\"")],
        );
        assert_eq!(read(header), [is("Basic", &[("realm", "simple")]), newauth]);
        let header = "Negotiate ab+/c==, , NTLM,bearer\tRealm = \"a, b=c\" ,SERVICE=\t\"\" , scope=x";
        let bearer = is("bearer", &[("realm", "a, b=c"), ("service", ""), ("scope", "x")]);
        let found = read(header);
        assert_eq!(
            found.iter().map(|(scheme, _)| &**scheme).collect::<Vec<_>>(),
            ["Negotiate", "NTLM", "bearer"]
        );
        assert_eq!(found[2], bearer);
    }

    #[test]
    fn a_parameter_is_known_by_its_whole_name_and_by_the_first_of_it() {
        let header = r#"Bearer error_realm="https://evil.example/", x-realm="y", realm="good", realm="other""#;
        let [challenge] = &parse(header)[..] else { panic!("one") };
        assert!(challenge.is("BEARER") && !challenge.is("Bear"));
        assert_eq!(challenge.parameter("realm"), Some("good"));
        assert_eq!(challenge.parameter("service"), None);
        // Nor is one taken from within the value of another.
        let within = parse(r#"Bearer error="realm=\"https://evil.example/\"", service=s"#);
        assert_eq!(within[0].parameter("realm"), None);
        assert_eq!(within[0].parameter("service"), Some("s"));
    }

    #[test]
    fn what_is_broken_is_left_out() {
        assert_eq!(read(""), []);
        assert_eq!(read("realm=\"nobody's\""), []);
        assert_eq!(read("Bearer realm=\"open"), [is("Bearer", &[])]);
        assert_eq!(read("Bearer realm=\"open\\"), [is("Bearer", &[])]);
        let plain = read("Bearer realm=https://auth.example/token service=s");
        assert_eq!(
            plain,
            [is(
                "Bearer",
                &[("realm", "https://auth.example/token"), ("service", "s")]
            )]
        );
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(header in "\\PC{0,60}", close in "[ ,=\"\\\\a/é]{0,40}") {
            parse(&header);
            parse(&close);
        }

        #[test]
        fn what_is_quoted_comes_out_as_it_was(value in "\\PC{0,40}", other in "[a-z]{1,8}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!("Basic realm=x, Bearer {other}1=\"{quoted}\",realm=\"{quoted}\", end=z");
            let found = parse(&header);
            prop_assert_eq!(found.len(), 2);
            prop_assert_eq!(found[1].parameter("realm"), Some(&*value));
            prop_assert_eq!(found[1].parameter("end"), Some("z"));
        }
    }
}
