//! The functions that rules may call, with the types they take: those of `k8s.io/apiserver/pkg/cel/environment`.
//!
//! Left out, and therefore refused when a definition is applied: the authorizer, and what newer Kubernetes
//! versions may add.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::types::Type;

/// One way to call a function.
pub(super) struct Signature {
    /// Called as a method; then the first argument is the target.
    pub member: bool,
    pub args: Vec<Shape>,
    pub result: Shape,
}

/// A type in a signature. Unlike [`Type`] it can be shared between threads.
pub(super) enum Shape {
    Plain(&'static str),
    Dyn,
    Param(u8),
    List(Box<Shape>),
    Map(Box<Shape>, Box<Shape>),
    Optional(Box<Shape>),
}

/// All functions by name. Comparisons stand under `_<_` only.
pub(super) static FUNCTIONS: LazyLock<HashMap<&'static str, Vec<Signature>>> = LazyLock::new(|| {
    let mut functions: HashMap<_, Vec<Signature>> = HashMap::new();
    for line in TABLE.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some((name, signature)) = read(line) {
            functions.entry(name).or_default().push(signature);
        }
    }
    functions
});

/// How many lines [`FUNCTIONS`] was made of.
#[cfg(test)]
pub(super) fn lines() -> usize {
    TABLE.lines().filter(|line| !line.trim().is_empty()).count()
}

fn read(line: &'static str) -> Option<(&'static str, Signature)> {
    let (head, result) = line.rsplit_once("): ")?;
    let (name, args) = head.split_once('(')?;
    let member = name.starts_with('.');
    let mut rest = args;
    let mut shapes = Vec::new();
    while !rest.is_empty() {
        let (shape, after) = shape(rest)?;
        shapes.push(shape);
        rest = after.strip_prefix(", ").unwrap_or(after);
    }
    let signature = Signature {
        member,
        args: shapes,
        result: shape(result)?.0,
    };
    Some((name.trim_start_matches('.'), signature))
}

fn shape(text: &'static str) -> Option<(Shape, &'static str)> {
    let end = text.find([',', '<', '>']).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let inner = |rest: &'static str| shape(rest.strip_prefix('<')?);
    Some(match word {
        "A" => (Shape::Param(0), rest),
        "B" => (Shape::Param(1), rest),
        "dyn" => (Shape::Dyn, rest),
        "list" => {
            let (item, rest) = inner(rest)?;
            (Shape::List(Box::new(item)), rest.strip_prefix('>')?)
        }
        "optional" => {
            let (of, rest) = inner(rest)?;
            (Shape::Optional(Box::new(of)), rest.strip_prefix('>')?)
        }
        "map" => {
            let (key, rest) = inner(rest)?;
            let (value, rest) = shape(rest.strip_prefix(", ")?)?;
            (Shape::Map(Box::new(key), Box::new(value)), rest.strip_prefix('>')?)
        }
        _ => (Shape::Plain(plain(word)), rest),
    })
}

/// The full name of a type that the table writes short.
fn plain(word: &'static str) -> &'static str {
    match word {
        "timestamp" => "google.protobuf.Timestamp",
        "duration" => "google.protobuf.Duration",
        "quantity" => "kubernetes.Quantity",
        "url" => "kubernetes.URL",
        "ip" => "net.IP",
        "cidr" => "net.CIDR",
        "semver" => "kubernetes.Semver",
        "format" => "kubernetes.NamedFormat",
        other => other,
    }
}

impl Shape {
    /// The same as a [`Type`].
    pub(super) fn to_type<'n>(&self) -> Type<'n> {
        match self {
            Shape::Plain(name) => Type::Plain(name),
            Shape::Dyn => Type::Dyn,
            Shape::Param(letter) => Type::Param(*letter),
            Shape::List(item) => Type::list(item.to_type()),
            Shape::Map(key, value) => Type::map(key.to_type(), value.to_type()),
            Shape::Optional(of) => Type::optional(of.to_type()),
        }
    }
}

/// The types that have a name in expressions, as in `type(x) == int`.
pub(super) const TYPE_NAMES: [(&str, &str); 16] = [
    ("bool", "bool"),
    ("int", "int"),
    ("uint", "uint"),
    ("double", "double"),
    ("string", "string"),
    ("bytes", "bytes"),
    ("list", "list"),
    ("map", "map"),
    ("null_type", "null_type"),
    ("type", "type"),
    ("optional_type", "optional_type"),
    ("google.protobuf.Timestamp", "google.protobuf.Timestamp"),
    ("google.protobuf.Duration", "google.protobuf.Duration"),
    ("net.IP", "net.IP"),
    ("net.CIDR", "net.CIDR"),
    ("kubernetes.Quantity", "kubernetes.Quantity"),
];

const TABLE: &str = "
!_(bool): bool
-_(int): int
-_(double): double
_+_(int, int): int
_+_(uint, uint): uint
_+_(double, double): double
_+_(string, string): string
_+_(bytes, bytes): bytes
_+_(list<A>, list<A>): list<A>
_+_(timestamp, duration): timestamp
_+_(duration, timestamp): timestamp
_+_(duration, duration): duration
_-_(int, int): int
_-_(uint, uint): uint
_-_(double, double): double
_-_(timestamp, timestamp): duration
_-_(timestamp, duration): timestamp
_-_(duration, duration): duration
_*_(int, int): int
_*_(uint, uint): uint
_*_(double, double): double
_/_(int, int): int
_/_(uint, uint): uint
_/_(double, double): double
_%_(int, int): int
_%_(uint, uint): uint
_==_(A, A): bool
_!=_(A, A): bool
_<_(bool, bool): bool
_<_(int, int): bool
_<_(int, uint): bool
_<_(int, double): bool
_<_(uint, int): bool
_<_(uint, uint): bool
_<_(uint, double): bool
_<_(double, int): bool
_<_(double, uint): bool
_<_(double, double): bool
_<_(string, string): bool
_<_(bytes, bytes): bool
_<_(timestamp, timestamp): bool
_<_(duration, duration): bool
@in(A, list<A>): bool
@in(A, map<A, B>): bool
size(string): int
size(bytes): int
size(list<A>): int
size(map<A, B>): int
.size(string): int
.size(bytes): int
.size(list<A>): int
.size(map<A, B>): int
type(dyn): type
dyn(A): dyn
bool(bool): bool
bool(string): bool
int(int): int
int(uint): int
int(double): int
int(string): int
int(timestamp): int
int(duration): int
uint(uint): uint
uint(int): uint
uint(double): uint
uint(string): uint
double(double): double
double(int): double
double(uint): double
double(string): double
string(string): string
string(bool): string
string(int): string
string(uint): string
string(double): string
string(bytes): string
string(timestamp): string
string(duration): string
string(ip): string
string(cidr): string
bytes(bytes): bytes
bytes(string): bytes
timestamp(string): timestamp
timestamp(int): timestamp
timestamp(timestamp): timestamp
duration(string): duration
duration(int): duration
duration(duration): duration
.contains(string, string): bool
.startsWith(string, string): bool
.endsWith(string, string): bool
.matches(string, string): bool
matches(string, string): bool
.charAt(string, int): string
.indexOf(string, string): int
.indexOf(string, string, int): int
.lastIndexOf(string, string): int
.lastIndexOf(string, string, int): int
.lowerAscii(string): string
.upperAscii(string): string
.replace(string, string, string): string
.replace(string, string, string, int): string
.split(string, string): list<string>
.split(string, string, int): list<string>
.substring(string, int): string
.substring(string, int, int): string
.trim(string): string
.join(list<string>): string
.join(list<string>, string): string
.format(string, list<dyn>): string
strings.quote(string): string
.find(string, string): string
.findAll(string, string): list<string>
.findAll(string, string, int): list<string>
.getFullYear(timestamp): int
.getFullYear(timestamp, string): int
.getMonth(timestamp): int
.getMonth(timestamp, string): int
.getDayOfYear(timestamp): int
.getDayOfYear(timestamp, string): int
.getDayOfMonth(timestamp): int
.getDayOfMonth(timestamp, string): int
.getDate(timestamp): int
.getDate(timestamp, string): int
.getDayOfWeek(timestamp): int
.getDayOfWeek(timestamp, string): int
.getHours(timestamp): int
.getHours(timestamp, string): int
.getMinutes(timestamp): int
.getMinutes(timestamp, string): int
.getSeconds(timestamp): int
.getSeconds(timestamp, string): int
.getMilliseconds(timestamp): int
.getMilliseconds(timestamp, string): int
.getHours(duration): int
.getMinutes(duration): int
.getSeconds(duration): int
.getMilliseconds(duration): int
.isSorted(list<A>): bool
.sum(list<int>): int
.sum(list<uint>): uint
.sum(list<double>): double
.sum(list<duration>): duration
.min(list<A>): A
.max(list<A>): A
.indexOf(list<A>, A): int
.lastIndexOf(list<A>, A): int
.slice(list<A>, int, int): list<A>
.flatten(list<list<A>>): list<A>
.flatten(list<A>): list<A>
.flatten(list<dyn>, int): list<dyn>
.distinct(list<A>): list<A>
.reverse(list<A>): list<A>
.sort(list<A>): list<A>
.first(list<A>): optional<A>
.last(list<A>): optional<A>
lists.range(int): list<int>
sets.contains(list<A>, list<A>): bool
sets.equivalent(list<A>, list<A>): bool
sets.intersects(list<A>, list<A>): bool
optional.none(): optional<A>
optional.of(A): optional<A>
optional.ofNonZeroValue(A): optional<A>
.hasValue(optional<A>): bool
.value(optional<A>): A
.or(optional<A>, optional<A>): optional<A>
.orValue(optional<A>, A): A
quantity(string): quantity
isQuantity(string): bool
sign(quantity): int
.isInteger(quantity): bool
.asInteger(quantity): int
.asApproximateFloat(quantity): double
.compareTo(quantity, quantity): int
.isGreaterThan(quantity, quantity): bool
.isLessThan(quantity, quantity): bool
.add(quantity, quantity): quantity
.add(quantity, int): quantity
.sub(quantity, quantity): quantity
.sub(quantity, int): quantity
url(string): url
isURL(string): bool
.getScheme(url): string
.getHost(url): string
.getHostname(url): string
.getPort(url): string
.getEscapedPath(url): string
.getQuery(url): map<string, list<string>>
ip(string): ip
isIP(string): bool
ip.isCanonical(string): bool
.family(ip): int
.isUnspecified(ip): bool
.isLoopback(ip): bool
.isLinkLocalMulticast(ip): bool
.isLinkLocalUnicast(ip): bool
.isGlobalUnicast(ip): bool
cidr(string): cidr
isCIDR(string): bool
.containsIP(cidr, string): bool
.containsIP(cidr, ip): bool
.containsCIDR(cidr, string): bool
.containsCIDR(cidr, cidr): bool
.ip(cidr): ip
.prefixLength(cidr): int
.masked(cidr): cidr
semver(string): semver
semver(string, bool): semver
isSemver(string): bool
isSemver(string, bool): bool
.major(semver): int
.minor(semver): int
.patch(semver): int
.compareTo(semver, semver): int
.isGreaterThan(semver, semver): bool
.isLessThan(semver, semver): bool
format.named(string): optional<format>
format.dns1123Label(): format
format.dns1123Subdomain(): format
format.dns1035Label(): format
format.qualifiedName(): format
format.dns1123LabelPrefix(): format
format.dns1123SubdomainPrefix(): format
format.dns1035LabelPrefix(): format
format.labelValue(): format
format.uri(): format
format.uuid(): format
format.byte(): format
format.date(): format
format.datetime(): format
.validate(format, string): optional<list<string>>
";
