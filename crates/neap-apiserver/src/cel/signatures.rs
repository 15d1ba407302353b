//! The functions there are, by their signatures: CEL's own, its extensions for strings, sets and optional values, and
//! Kubernetes' for lists, regular expressions, addresses and quantities.
//!
//! A signature with a dot is called on a value. `A` and `B` stand for any type.

use super::types::Type;
use std::collections::HashMap;
use std::sync::LazyLock;

const FUNCTIONS: &str = "
size(string) int
size(bytes) int
size(list<A>) int
size(map<A,B>) int
string.size() int
bytes.size() int
list<A>.size() int
map<A,B>.size() int
type(A) type
dyn(A) dyn
bool(bool) bool
bool(string) bool
int(int) int
int(uint) int
int(double) int
int(string) int
int(timestamp) int
uint(uint) uint
uint(int) uint
uint(double) uint
uint(string) uint
double(double) double
double(int) double
double(uint) double
double(string) double
string(string) string
string(bool) string
string(int) string
string(uint) string
string(double) string
string(bytes) string
string(timestamp) string
string(duration) string
string(quantity) string
string(ip) string
string(cidr) string
string(url) string
bytes(bytes) bytes
bytes(string) bytes
timestamp(timestamp) timestamp
timestamp(string) timestamp
timestamp(int) timestamp
duration(duration) duration
duration(string) duration
duration(int) duration
string.contains(string) bool
string.startsWith(string) bool
string.endsWith(string) bool
string.matches(string) bool
matches(string,string) bool
string.charAt(int) string
string.indexOf(string) int
string.indexOf(string,int) int
string.lastIndexOf(string) int
string.lastIndexOf(string,int) int
list<string>.join() string
list<string>.join(string) string
string.lowerAscii() string
string.upperAscii() string
string.replace(string,string) string
string.replace(string,string,int) string
string.split(string) list<string>
string.split(string,int) list<string>
string.substring(int) string
string.substring(int,int) string
string.trim() string
string.reverse() string
string.find(string) string
string.findAll(string) list<string>
string.findAll(string,int) list<string>
timestamp.getFullYear() int
timestamp.getMonth() int
timestamp.getDate() int
timestamp.getDayOfMonth() int
timestamp.getDayOfWeek() int
timestamp.getDayOfYear() int
timestamp.getHours() int
timestamp.getMinutes() int
timestamp.getSeconds() int
timestamp.getMilliseconds() int
duration.getHours() int
duration.getMinutes() int
duration.getSeconds() int
duration.getMilliseconds() int
list<A>.isSorted() bool
list<A>.sum() A
list<A>.min() A
list<A>.max() A
list<A>.indexOf(A) int
list<A>.lastIndexOf(A) int
sets.contains(list<A>,list<A>) bool
sets.intersects(list<A>,list<A>) bool
sets.equivalent(list<A>,list<A>) bool
isURL(string) bool
url(string) url
url.getScheme() string
url.getHost() string
url.getHostname() string
url.getPort() string
url.getEscapedPath() string
url.getQuery() map<string,list<string>>
isIP(string) bool
ip(string) ip
ip.isCanonical(string) bool
ip.family() int
ip.isUnspecified() bool
ip.isLoopback() bool
ip.isLinkLocalMulticast() bool
ip.isLinkLocalUnicast() bool
ip.isGlobalUnicast() bool
isCIDR(string) bool
cidr(string) cidr
cidr.containsIP(ip) bool
cidr.containsIP(string) bool
cidr.containsCIDR(cidr) bool
cidr.containsCIDR(string) bool
cidr.ip() ip
cidr.masked() cidr
cidr.prefixLength() int
isQuantity(string) bool
quantity(string) quantity
quantity.sign() int
quantity.isInteger() bool
quantity.asInteger() int
quantity.asApproximateFloat() double
quantity.add(quantity) quantity
quantity.add(int) quantity
quantity.sub(quantity) quantity
quantity.sub(int) quantity
quantity.isLessThan(quantity) bool
quantity.isGreaterThan(quantity) bool
quantity.compareTo(quantity) int
optional.of(A) opt<A>
optional.none() opt<A>
optional.ofNonZeroValue(A) opt<A>
opt<A>.hasValue() bool
opt<A>.value() A
opt<A>.or(opt<A>) opt<A>
opt<A>.orValue(A) A
_&&_(bool,bool) bool
_||_(bool,bool) bool
!_(bool) bool
-_(int) int
-_(double) double
_+_(int,int) int
_+_(uint,uint) uint
_+_(double,double) double
_+_(string,string) string
_+_(bytes,bytes) bytes
_+_(list<A>,list<A>) list<A>
_+_(timestamp,duration) timestamp
_+_(duration,timestamp) timestamp
_+_(duration,duration) duration
_-_(int,int) int
_-_(uint,uint) uint
_-_(double,double) double
_-_(timestamp,timestamp) duration
_-_(timestamp,duration) timestamp
_-_(duration,duration) duration
_*_(int,int) int
_*_(uint,uint) uint
_*_(double,double) double
_/_(int,int) int
_/_(uint,uint) uint
_/_(double,double) double
_%_(int,int) int
_%_(uint,uint) uint
@in(A,list<A>) bool
@in(A,map<A,B>) bool
@not_strictly_false(bool) bool
";

pub(super) struct Signature {
    /// The first is the receiver where the function is called on a value.
    takes: Vec<Type>,
    gives: Type,
}

/// The namespaces that functions are called in, which look like variables.
pub(super) const NAMESPACES: [&str; 3] = ["sets", "optional", "ip"];

/// By name, and whether it is called on a value. Functions of a namespace have it in their name.
pub(super) static SIGNATURES: LazyLock<HashMap<(&'static str, bool), Vec<Signature>>> = LazyLock::new(|| {
    let mut out: HashMap<(&'static str, bool), Vec<Signature>> = HashMap::new();
    for line in FUNCTIONS.lines().filter(|line| !line.is_empty()) {
        let (call, gives) = line.rsplit_once(' ').expect("a line of the table ends in a type");
        let (name, rest) = call.split_once('(').expect("a line of the table has parentheses");
        let takes = rest.strip_suffix(')').expect("a line of the table closes its parentheses");
        let mut takes = types(takes);
        // In a namespace, unless the value before the dot is a type's name.
        let spaced = ["sets.", "optional."].iter().any(|space| name.starts_with(space)) || name == "ip.isCanonical";
        let key = match name.rsplit_once('.').filter(|_| !spaced) {
            Some((receiver, name)) => {
                takes.insert(0, types(receiver).remove(0));
                (name, true)
            }
            None => (name, false),
        };
        out.entry(key).or_default().push(Signature { takes, gives: types(gives).remove(0) });
    }
    out
});

/// A list of types as the table spells them.
fn types(text: &str) -> Vec<Type> {
    let (mut out, mut depth, mut from) = (Vec::new(), 0, 0);
    let mut push = |part: &str| {
        if !part.is_empty() {
            out.push(named(part));
        }
    };
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => {
                push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    push(&text[from..]);
    out
}

fn named(text: &str) -> Type {
    if let Some((outer, inner)) = text.strip_suffix('>').and_then(|t| t.split_once('<')) {
        let mut inner = types(inner);
        let first = inner.remove(0);
        return match outer {
            "list" => Type::list(first),
            "opt" => Type::optional(first),
            _ => Type::map(first, inner.remove(0)),
        };
    }
    match text {
        "A" => Type::Var(0),
        "B" => Type::Var(1),
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "type" => Type::Kind,
        "quantity" => Type::Quantity,
        "ip" => Type::Ip,
        "cidr" => Type::Cidr,
        "url" => Type::Url,
        _ => Type::Dyn,
    }
}

impl Signature {
    /// What the function gives when it is called with these, if it can be.
    pub(super) fn gives(&self, with: &[Type]) -> Option<Type> {
        let mut bound = [None, None];
        let fit = self.takes.len() == with.len()
            && self.takes.iter().zip(with).all(|(takes, with)| bind(takes, with, &mut bound));
        fit.then(|| substitute(&self.gives, &bound))
    }
}

fn bind(takes: &Type, with: &Type, bound: &mut [Option<Type>; 2]) -> bool {
    match (takes, with) {
        (Type::Var(n), with) => match &mut bound[usize::from(*n)] {
            slot @ None => {
                *slot = Some(with.clone());
                true
            }
            Some(Type::Dyn) => {
                bound[usize::from(*n)] = Some(with.clone());
                true
            }
            Some(known) => known.accepts(with) || matches!(with, Type::Null),
        },
        (_, Type::Dyn) => true,
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => bind(a, b, bound),
        (Type::Map(a, x), Type::Map(b, y)) => bind(a, b, bound) && bind(x, y, bound),
        // An object is a map whose keys are known.
        (Type::Map(a, x), Type::Object(_)) => bind(a, &Type::String, bound) && bind(x, &Type::Dyn, bound),
        (takes, with) => takes.accepts(with),
    }
}

fn substitute(of: &Type, bound: &[Option<Type>; 2]) -> Type {
    match of {
        Type::Var(n) => bound[usize::from(*n)].clone().unwrap_or(Type::Dyn),
        Type::List(of) => Type::list(substitute(of, bound)),
        Type::Optional(of) => Type::optional(substitute(of, bound)),
        Type::Map(key, value) => Type::map(substitute(key, bound), substitute(value, bound)),
        other => other.clone(),
    }
}
