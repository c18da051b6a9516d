use serde_json::{Value, json};

use super::{check, run};

/// Everything that the rules below look at.
fn sample() -> (Value, Value) {
    let keyed = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
        "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}});
    let set = json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}});
    let properties = json!({
        "s": {"type": "string"}, "i": {"type": "integer"}, "n": {"type": "number"}, "b": {"type": "boolean"},
        "int": {"x-kubernetes-int-or-string": true}, "text": {"x-kubernetes-int-or-string": true},
        "l": {"type": "array", "items": {"type": "integer"}}, "ls": {"type": "array", "items": {"type": "string"}},
        "set": set.clone(), "set2": set, "keyed": keyed,
        "m": {"type": "object", "additionalProperties": {"type": "string"}},
        "o": {"type": "object", "properties": {
            "a": {"type": "string"}, "z": {"type": "integer"}, "none": {"type": "string", "nullable": true}}},
        "t": {"type": "string", "format": "date-time"}, "d": {"type": "string", "format": "duration"},
        "day": {"type": "string", "format": "date"}, "bytes": {"type": "string", "format": "byte"},
        "namespace": {"type": "string"}, "a-b": {"type": "string"}, "x.y": {"type": "string"},
        "p/q": {"type": "string"}, "u__v": {"type": "string"}, "absent": {"type": "string"}, "size": {"type": "string"},
    });
    let object = json!({
        "s": "héllo", "i": 3, "n": 1, "b": true, "int": 5, "text": "50%", "l": [3, 1, 2], "ls": ["a", "b"],
        "set": ["x", "y"], "set2": ["y", "x"], "keyed": [{"k": "a", "v": 1}, {"k": "b", "v": 2}],
        "m": {"k1": "v1", "k-2": "v2"}, "o": {"a": "A", "z": 2, "none": null}, "t": "2024-02-29T12:34:56.789Z",
        "d": "1h30m", "day": "2024-02-29", "bytes": "aGVsbG8=", "namespace": "ns", "a-b": "dash", "x.y": "dot",
        "p/q": "slash", "u__v": "under", "size": "1Gi",
    });
    (properties, object)
}

fn said(rule: &str) -> Vec<String> {
    let (properties, object) = sample();
    check(json!([{"rule": rule, "message": "broken"}]), properties, object)
}

fn hold(rules: &[&str]) {
    for rule in rules {
        assert_eq!(said(rule), Vec::<String>::new(), "{rule}");
    }
}

fn fail(cases: &[(&str, &str)]) {
    for (rule, wanted) in cases {
        let said = said(rule).join("; ");
        assert!(said.contains(wanted), "{rule}: {said}");
    }
}

#[test]
fn strings_are_counted_in_characters() {
    hold(&[
        "self.s.size() == 5 && size(self.s) == 5 && bytes(self.s).size() == 6",
        "self.s.charAt(1) == 'é' && self.s.indexOf('l') == 2 && self.s.lastIndexOf('l') == 3",
        "self.s.substring(1, 3) == 'él' && self.s.contains('éll') && self.s.matches('^h.llo$')",
        "'abcabc'.lastIndexOf('abc', 3) == 3 && 'abc'.indexOf('x', 9) == -1",
        "'a,b,c'.split(',', 2) == ['a', 'b,c'] && ['x', 'y'].join('-') == 'x-y' && 'ab'.replace('', '-') == '-a-b-'",
        "'HéLLO'.lowerAscii() == 'héllo' && '  x '.trim() == 'x' && strings.quote('a\"b') == '\"a\\\\\"b\"'",
        "'1 2 3'.findAll('[0-9]', 2) == ['1', '2'] && 'abc 12'.find('[0-9]+') == '12'",
    ]);
}

#[test]
fn literals_are_those_of_cel() {
    hold(&[
        "0x1F == 31 && .5 == 0.5 && 1e3 == 1000.0 && 1u + 2u == 3u && -9223372036854775808 < 0",
        r#"'\u00e9' == 'é' && '\x41\101' == 'AA' && r'\d' == '\\d' && """a'b"c""" == 'a\'b"c' && b'\xff' == b'\377'"#,
        "{'a': 1, 'a': 2}.a == 2 && {1: 'x'}[1] == 'x' && [[]].size() == 1 // a comment",
    ]);
    fail(&[
        ("9223372036854775808 == 1", "invalid int literal"),
        ("'abc", "Syntax error"),
        ("[1, 'a'].size() == 2", "1:5: expected type 'int' but found 'string'"),
        ("package == 1", "reserved identifier: package"),
    ]);
}

#[test]
fn types_are_checked_when_the_definition_is_applied() {
    fail(&[
        (
            "self.nope == 1",
            "COMPILE schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value: {\"Rule\":\"self.nope == 1\",\"Message\":\"broken\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}: compilation failed: ERROR: <input>:1:5: undefined field 'nope'\n | self.nope == 1\n | ....^",
        ),
        (
            "self.i + 1.0 == 4.0",
            "found no matching overload for '_+_' applied to '(int, double)'",
        ),
        (
            "self.s == 1",
            "found no matching overload for '_==_' applied to '(string, int)'",
        ),
        ("self.s.foo()", "undeclared reference to 'foo' (in container '')"),
        ("x == 1", "undeclared reference to 'x' (in container '')"),
        ("self.i", "cel expression must evaluate to a bool"),
        ("self.int", "cel expression must evaluate to a bool"),
        ("self.b && self.i", "1:15: expected type 'bool' but found 'int'"),
        (
            "self.b ? 1 : 'x'",
            "found no matching overload for '_?_:_' applied to '(bool, int, string)'",
        ),
        ("self.l.all(x, x)", "expected type 'bool' but found 'int'"),
        ("self.i.all(x, true)", "cannot be range of a comprehension"),
        ("has(self.s)  && has(self)", "invalid argument to has() macro"),
        (
            "self.l['a'] == 1",
            "found no matching overload for '_[_]' applied to '(list(int), string)'",
        ),
        ("self.s.matches('[')", "invalid matches argument"),
        ("duration('x') == self.d", "invalid duration argument"),
        ("self.s.x == 1", "type 'string' does not support field selection"),
        ("self.metadata.name == 'x'", "undefined field 'metadata'"),
    ]);
}

#[test]
fn types_cannot_grow_faster_than_the_text() {
    let double = ".optMap(x, {x: x})".repeat(60);
    let rule = format!("optional.of(1){double} == optional.of(1){double}");
    fail(&[(&rule, "unsupported map key type: map(int, int)")]);
}

#[test]
fn functions_that_are_not_there_are_refused_by_name() {
    for (rule, name) in [
        ("authorizer.path('/x').check('get').allowed()", "authorizer"),
        ("math.greatest(1, 2) == 2", "greatest"),
        ("cel.bind(x, 1, x == 1)", "bind"),
        ("base64.encode(b'a') == 'YQ=='", "encode"),
    ] {
        fail(&[(rule, &format!("undeclared reference to '{name}'"))]);
    }
}

#[test]
fn an_operand_that_decides_hides_errors_in_the_others() {
    hold(&[
        "1/0 == 1 || true",
        "!(1/0 == 1 && false)",
        "[0, 1].exists(x, 1/x == 1)",
        "![0, 1].all(x, 1/x == 2)",
    ]);
    fail(&[
        (
            "1/0 == 1 && true",
            "spec: Invalid value: \"object\": division by zero evaluating rule: broken",
        ),
        ("1 % 0 == 1", "modulus by zero"),
        ("9223372036854775807 + self.i == 0", "integer overflow"),
        ("self.l[5] == 1", "index out of bounds: 5"),
        ("self.m['zz'] == ''", "no such key: zz"),
        ("self.absent == ''", "no such key: absent"),
        ("int(self.s) == 1", "type conversion error from 'string' to 'int'"),
    ]);
}

#[test]
fn names_that_are_no_identifiers_are_escaped() {
    hold(&[
        "self.__namespace__ == 'ns' && self.namespace == 'ns' && self.a__dash__b == 'dash' && self.x__dot__y == 'dot'",
        "self.p__slash__q == 'slash' && self.u__underscores__v == 'under' && has(self.a__dash__b)",
    ]);
    fail(&[("self.u__v == 'under'", "undefined field 'u__v'")]);
}

#[test]
fn absent_and_null_fields_are_not_there() {
    hold(&[
        "has(self.s) && !has(self.absent) && !has(self.o.none)",
        "self.?absent.orValue('d') == 'd' && self.o.?none.orValue('d') == 'd' && self.?o.z.value() == 2",
        "self.m[?'zz'].orValue('d') == 'd' && !self.l[?7].hasValue()",
        "self.?i.optMap(x, x + 1).value() == 4 && self.?absent.optFlatMap(x, optional.of(x)) == optional.none()",
        "[?self.?absent, 'x'] == ['x'] && {?'a': self.?absent} == {}",
    ]);
}

#[test]
fn int_or_string_is_known_at_runtime_only() {
    hold(&[
        "self.int == 5 && self.int != '5' && self.text == '50%' && type(self.int) == int && type(self.text) == string",
        "type(self.text) == int ? self.text > 0 : self.text.endsWith('%')",
    ]);
    fail(&[(
        "self.text > 3",
        "'no such overload': call arguments did not match a supported operator, function or macro signature for rule: broken",
    )]);
}

#[test]
fn lists_maps_and_sets_have_their_functions() {
    hold(&[
        "self.l.map(x, x > 1, x * 2) == [6, 4] && self.l.filter(x, x > 1) == [3, 2] && self.l.exists_one(x, x == 1)",
        "self.m.all(k, k.startsWith('k')) && 'k1' in self.m && self.m.k1 == 'v1' && self.m['k-2'] == 'v2'",
        "self.l.transformList(i, v, i > 0, v * i) == [1, 4] && self.l.all(i, v, i >= 0 && v > 0)",
        "self.m.transformMap(k, v, k == 'k1', v + '!') == {'k1': 'v1!'}",
        "self.keyed.sortBy(x, -x.v).map(x, x.k) == ['b', 'a'] && self.keyed.exists(x, x.k == 'a' && x.v == 1)",
        "[3, 1, 2].sort() == [1, 2, 3] && [1, 1].distinct() == [1] && [[1], [2]].flatten() == [1, 2]",
        "[1, 3].sum() == 4 && [1, 3].max() == 3 && ['b', 'a'].min() == 'a' && [1, 2].isSorted() && [1, 2].last().value() == 2",
        "sets.contains([1, 2], [2]) && sets.equivalent([1, 1, 2], [2, 1]) && !sets.intersects([1], [2])",
        "self.set == self.set2 && self.set + ['x', 'q'] == ['x', 'y', 'q'] && self.ls + ['a'] == ['a', 'b', 'a']",
        "lists.range(3).slice(1, 3) == [1, 2] && self.l.indexOf(1) == 1",
    ]);
    fail(&[
        ("[1, 2].slice(0, 5) == []", "cannot slice(0, 5), list is length 2"),
        (
            "self.l.transformMapEntry(i, v, {'x': v}) == {}",
            "insert failed: key x already exists",
        ),
    ]);
}

#[test]
fn strings_with_a_format_are_times_and_bytes() {
    hold(&[
        "self.t.getFullYear() == 2024 && self.t.getMonth() == 1 && self.t.getDate() == 29 && self.t.getDayOfWeek() == 4",
        "self.t > timestamp('2024-01-01T00:00:00Z') && self.t.getHours('+02:00') == 14 && self.t.getMilliseconds() == 789",
        "self.d > duration('1h') && self.d.getMinutes() == 90 && string(self.d) == '5400s'",
        "self.day + duration('24h') == timestamp('2024-03-01T00:00:00Z') && self.bytes == b'hello'",
        "timestamp('2024-01-02T00:00:00Z') - timestamp('2024-01-01T00:00:00Z') == duration('24h')",
    ]);
}

#[test]
fn quantities_are_exact() {
    hold(&[
        "quantity(self.size) == quantity('1024Mi') && quantity('1.5Gi').isGreaterThan(quantity('1Gi'))",
        "quantity('1Gi').asInteger() == 1073741824 && !quantity('100m').isInteger() && quantity('50k') == quantity('5e4')",
        "quantity('1Gi').add(1).sub(quantity('1Gi')) == quantity('1') && sign(quantity('-1m')) == -1",
        "isQuantity('1.5Ti') && !isQuantity('1GI') && !isQuantity('') && !isQuantity('1.2.3')",
        "quantity('0.0000000001') == quantity('1n') && quantity('99999999999999999999').compareTo(quantity('9E')) == 1",
    ]);
    fail(&[(
        "quantity(self.s).isInteger()",
        "quantities must match the regular expression",
    )]);
}

#[test]
fn addresses_urls_versions_and_formats_are_known() {
    hold(&[
        "ip('::1').isLoopback() && ip('10.0.0.1').family() == 4 && !isIP('01.2.3.4') && !isIP('::ffff:1.2.3.4')",
        "cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')",
        "cidr('::/0').containsIP('::1') && !cidr('10.0.0.0/8').containsIP('11.0.0.1') && !isCIDR('10.0.0.0/33')",
        "url('https://[::1]:80/a%20b?x=1&x=2').getHostname() == '::1' && url('https://e.com/?x=1&x=2').getQuery() == {'x': ['1', '2']}",
        "isURL('mailto:x@y') && !isURL('example.com') && url('https://e.com/ü').getEscapedPath() == '/%C3%BC'",
        "semver('1.10.0').isGreaterThan(semver('1.9.0')) && isSemver('v1.2', true) && !isSemver('1.2')",
        "semver('1.0.0-rc.1').isLessThan(semver('1.0.0'))",
        "!format.dns1123Label().validate('a-b').hasValue() && format.named('uuid').value().validate('x').hasValue()",
    ]);
}

#[test]
fn format_writes_as_cel_go_does() {
    hold(&[
        "'%s %d %.2f %e %b %x'.format(['a', 1, 1234.567, 1500.0, 5, 255]) == 'a 1 1,234.57 1.500000×10⁰³ 101 ff'",
        "'%s'.format([[1, 'a', {'k': 1.5}]]) == '[1, \"a\", {\"k\":1.500000}]'",
        "'%s'.format([self.keyed]) == '[{\"k\":\"a\", \"v\":1}, {\"k\":\"b\", \"v\":2}]'",
    ]);
}

#[test]
fn a_rule_that_costs_too_much_ends_everything() {
    let list: Vec<i32> = (0..400).collect();
    let rules = json!([
        {"rule": "self.l.all(a, self.l.all(b, self.l.all(c, a + b + c >= 0)))", "message": "slow"},
        {"rule": "false", "message": "never asked"},
    ]);
    let said = check(
        rules,
        json!({"l": {"type": "array", "items": {"type": "integer"}}}),
        json!({"l": list}),
    );
    assert_eq!(
        said,
        [
            "spec: Invalid value: \"object\": 'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: slow"
        ]
    );
}

#[test]
fn texts_cannot_grow_without_bound() {
    let text = "x".repeat(100_000);
    let said = check(
        json!([{"rule": "self.s.replace('x', self.s).size() > 0", "message": "big"}]),
        json!({"s": {"type": "string"}}),
        json!({"s": text}),
    );
    assert!(said[0].contains("cost limit exceeded"), "{said:?}");
}

#[test]
fn what_is_looked_at_costs_by_its_size_however_it_was_made() {
    let double = ".optMap(x, [x, x])".repeat(40);
    let tree = format!("optional.of([1]){double}.value()");
    let wide = format!(
        "self.l.all(a, self.l.all(b, self.l.all(c, {}self == self)))",
        "self == self && ".repeat(200)
    );
    let regex = "[self.s].exists(x, x.matches('(a|b|c){1,20}(d|e){1,20}$'))";
    let text = json!("a".repeat(2_000_000));
    for (rule, object) in [
        (format!("{tree} == {tree}"), json!({})),
        (format!("'%s'.format([{tree}]) == ''"), json!({})),
        (format!("{tree}.flatten().size() == 1"), json!({})),
        (wide, json!({"s": "x".repeat(1000), "l": [1, 2, 3, 4, 5]})),
        (regex.to_owned(), json!({"s": text})),
    ] {
        let properties = json!({"s": {"type": "string"}, "l": {"type": "array", "items": {"type": "integer"}}});
        let said = check(json!([{"rule": rule, "message": "m"}]), properties, object).join("; ");
        assert!(said.contains("cost limit exceeded"), "{rule}: {said}");
    }
}

#[test]
fn nesting_is_bounded_and_chains_are_not_nesting() {
    let deep = format!("{}true{}", "(".repeat(500), ")".repeat(500));
    fail(&[(&deep, "expression recursion limit exceeded: 100")]);
    fail(&[(
        &format!("{}true", "!".repeat(500)),
        "expression recursion limit exceeded",
    )]);
    fail(&[(
        &format!("1{} > 0", " + 1".repeat(500)),
        "expression recursion limit exceeded",
    )]);
    hold(&[&vec!["self.b"; 2000].join(" && ")]);
}

#[test]
fn every_line_of_the_table_of_functions_is_read() {
    use crate::schema::cel::signatures::{FUNCTIONS, lines};
    assert_eq!(FUNCTIONS.values().map(Vec::len).sum::<usize>(), lines());
}

#[test]
fn the_root_of_a_resource_shows_its_type_and_name() {
    let schema = json!({"type": "object", "properties": {"metadata": {"type": "object"}}, "x-kubernetes-validations": [
        {"rule": "self.metadata.name == 'x' && self.kind == 'K'", "message": "root"}]});
    let object =
        |name: &str| json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": name, "labels": {"a": "b"}}});
    assert_eq!(run(&schema, &object("x"), None), Vec::<String>::new());
    assert_eq!(run(&schema, &object("y"), None), ["<nil>: Invalid value: root"]);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_compiler_panic(text in "[ -~]{0,40}") {
        said(&text);
    }

    #[test]
    fn no_mixture_of_words_makes_it_panic(words in proptest::collection::vec(0_usize..24, 0..16)) {
        const WORDS: [&str; 24] = [
            "self", ".", "l", "(", ")", "[", "]", "?", ":", "&&", "==", "1", "'a'", "-", "!", "all", "x", ",", "has",
            "{", "}", "in", "0u", "map",
        ];
        let text: Vec<&str> = words.iter().map(|w| WORDS[*w]).collect();
        said(&text.join(""));
        said(&text.join(" "));
    }
}
