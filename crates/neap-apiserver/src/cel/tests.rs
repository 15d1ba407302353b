//! Rules as definitions carry them, held against objects; and expressions that are no rules.

use super::rules;
use crate::schema::Schema;
use serde_json::{Value, json};

/// A schema with one rule at its `spec`, whose fields are those of `FIELDS`.
fn schema(rule: &Value) -> Value {
    json!({"type": "object", "properties": {"spec": {
        "type": "object",
        "x-kubernetes-validations": [rule],
        "properties": {
            "min": {"type": "integer"}, "max": {"type": "integer"}, "ratio": {"type": "number"},
            "name": {"type": "string"}, "on": {"type": "boolean"}, "my-name": {"type": "string"},
            "at": {"type": "string", "format": "date-time"}, "wait": {"type": "string", "format": "duration"},
            "raw": {"type": "string", "format": "byte"}, "namespace": {"type": "string"},
            "size": {"x-kubernetes-int-or-string": true},
            "list": {"type": "array", "items": {"type": "integer"}},
            "names": {"type": "array", "items": {"type": "string"}},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "port": {"type": "integer"}}}},
        },
    }}})
}

fn errors(schema: &Value, object: &Value, old: Option<&Value>) -> Vec<String> {
    let found = Schema::compile(schema).unwrap_or_else(|e| panic!("{e}")).check_rules(object, old);
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn expressions() {
    let spec = json!({"min": 2, "max": 5, "ratio": 1.5, "name": "web-1", "on": true, "my-name": "x",
        "at": "2026-01-02T03:04:05Z", "wait": "1h30m", "raw": "aGk=", "namespace": "ns", "size": "10%",
        "list": [3, 1, 2], "names": ["a", "b"], "tags": ["x", "y"], "labels": {"k": "v", "a.b/c": "d"},
        "ports": [{"name": "http", "port": 80}, {"name": "https", "port": 443}]});
    let object = json!({"spec": spec});
    let check = |rule: &str| {
        let found = errors(&schema(&json!({"rule": rule})), &object, None);
        assert!(found.is_empty(), "{rule}: {found:?}");
    };
    for rule in [
        "self.min <= self.max && self.max % 2 == 1 && self.min * 3 - 1 == self.max && -self.min == -2 && 7 / 2 == 3",
        "self.ratio > 1.0 && self.ratio < 2 && double(self.min) == 2.0 && int('7') == 7 && string(7) == '7'",
        "self.name.startsWith('web') && self.name.endsWith('1') && self.name.contains('-') && size(self.name) == 5",
        "self.name.matches('^[a-z]+-[0-9]$') && self.name.find('[0-9]') == '1' && 'a1b2'.findAll('[0-9]') == ['1', '2']",
        "self.on ? self.min == 2 : false",
        "!self.on || has(self.name) && !has(self.labels.nothing)",
        "self.my__dash__name == 'x' && self.__namespace__ == 'ns'",
        "self.at.getFullYear() == 2026 && self.at.getMonth() == 0 && self.at.getDate() == 2 && self.at.getHours() == 3",
        "self.at < timestamp('2027-01-01T00:00:00Z') && self.at + duration('1h') > self.at",
        "self.wait == duration('90m') && self.wait.getMinutes() == 90",
        "self.raw == b'hi' && string(self.raw) == 'hi' && size(self.raw) == 2",
        "type(self.size) == string && self.size == '10%' && type(self.min) == int",
        "self.list.all(x, x > 0) && self.list.exists(x, x == 2) && self.list.exists_one(x, x == 3)",
        "self.list.filter(x, x > 1) == [3, 2] && self.list.map(x, x * 2) == [6, 2, 4] && self.list.map(x, x > 1, x) == [3, 2]",
        "self.list.sum() == 6 && self.list.min() == 1 && self.list.max() == 3 && !self.list.isSorted() && self.list.indexOf(1) == 1",
        "self.list[0] == 3 && 2 in self.list && !(9 in self.list) && size(self.list + [4]) == 4",
        "self.tags == ['y', 'x'] && self.tags + ['x'] == ['x', 'y']",
        "self.labels['k'] == 'v' && 'a.b/c' in self.labels && self.labels.all(key, size(key) < 10)",
        "self.ports.exists(p, p.name == 'http' && p.port == 80) && self.ports.map(p, p.port).sum() == 523",
        "self.ports.all(i, p, i < 2 && p.port > 0) && self.list.transformList(i, v, i + v) == [3, 2, 4]",
        "self.labels.transformMap(k, v, k == 'k', v + '!') == {'k': 'v!'}",
        "self.?name.orValue('') == 'web-1' && self.labels[?'none'].orValue('x') == 'x' && !self.labels[?'none'].hasValue()",
        "self.?name.optMap(n, size(n)).value() == 5 && optional.none().or(optional.of(1)).value() == 1",
        "sets.contains(self.list, [1, 2]) && sets.intersects(self.list, [9, 1]) && sets.equivalent([1, 1], [1])",
        "'a,b,c'.split(',') == ['a', 'b', 'c'] && ['a', 'b'].join('-') == 'a-b' && 'abc'.substring(1, 2) == 'b'",
        "'Hello'.lowerAscii() == 'hello' && ' x '.trim() == 'x' && 'aXa'.replace('a', 'b') == 'bXb' && 'abc'.charAt(1) == 'b'",
        "'abcabc'.indexOf('b') == 1 && 'abcabc'.lastIndexOf('b') == 4 && 'abc'.indexOf('x') == -1 && '%d of %s'.format([1, 'x']) == '1 of x'",
        "quantity('1.5Gi').isGreaterThan(quantity('1G')) && quantity('500m').add(quantity('0.5')).asInteger() == 1 && isQuantity('1k') && !isQuantity('x')",
        "ip('10.0.0.1').family() == 4 && cidr('10.0.0.0/8').containsIP('10.1.2.3') && !cidr('10.0.0.0/8').containsIP(ip('11.0.0.1')) && isIP('::1') && ip('::1').isLoopback()",
        "cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8') && cidr('10.0.0.0/8').containsCIDR('10.2.0.0/16') && ip.isCanonical('10.0.0.1')",
        "url('https://a.example:8080/p/q?x=1&x=2').getHostname() == 'a.example' && url('https://a:1/p').getPort() == '1' && isURL('http://a') && !isURL('a b')",
        "url('https://a/p?x=1&x=2').getQuery()['x'] == ['1', '2'] && url('https://a/p').getEscapedPath() == '/p'",
        // As definitions in the wild write them.
        "self.ports.all(a, self.ports.exists_one(b, a.name == b.name && (has(a.port) ? a.port == b.port : !has(b.port))))",
        r#"self.name.matches(r"""^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+$""")"#,
        "(self.list.size() > 0 ? self.ports[0].name.size() : 0) + (self.list.size() > 1 ? 2 : 0) <= 128",
        "self.name in ['web-1', 'x'] ? !has(self.labels.tls) : true",
        "!has(self.size) || type(self.size) != int || self.size > 0",
        "!(has(self.wait) && duration('2h') < self.wait) && has(self.min) == has(self.max)",
        "self.ports.filter(p, p.name == 'http').size() == 1 && self.ports.filter(p, p.port > 1)[0].port == 80",
        // What decides alone decides, whatever is wrong with the other side.
        "self.list[9] == 1 || true",
        "!(self.list[9] == 1 && false)",
        "self.list.exists(x, 6 / (x - 1) == 3)",
    ] {
        check(rule);
    }
}

#[test]
fn what_does_not_hold_is_said() {
    let object = json!({"spec": {"min": 7, "max": 5, "list": [1]}});
    let check = |rule: Value, want: &str| {
        assert_eq!(errors(&schema(&rule), &object, None), [want], "{rule}");
    };
    check(
        json!({"rule": "self.min <= self.max"}),
        "spec: Invalid value: \"object\": failed rule: self.min <= self.max",
    );
    check(json!({"rule": "self.min <= self.max", "message": "too much"}), "spec: Invalid value: \"object\": too much");
    check(
        json!({"rule": "self.min <= self.max", "message": "m", "messageExpression": "'%d > %d'.format([self.min, self.max])"}),
        "spec: Invalid value: \"object\": 7 > 5",
    );
    check(
        json!({"rule": "self.min <= self.max", "message": "m", "messageExpression": "string(self.list[5])"}),
        "spec: Invalid value: \"object\": m",
    );
    check(
        json!({"rule": "has(self.name)", "message": "m", "reason": "FieldValueRequired", "fieldPath": ".name"}),
        "spec.name: Required value: m",
    );
    check(json!({"rule": "false", "message": "m", "reason": "FieldValueForbidden"}), "spec: Forbidden: m");
    check(
        json!({"rule": "self.list[5] == 1"}),
        "spec: Invalid value: \"object\": index out of bounds: 5 evaluating rule: failed rule: self.list[5] == 1",
    );
    check(
        json!({"rule": "self.name == 'x'"}),
        "spec: Invalid value: \"object\": no such key: name evaluating rule: failed rule: self.name == 'x'",
    );
}

#[test]
fn rules_of_changes() {
    let old = json!({"spec": {"min": 1, "name": "a", "ports": [{"name": "x", "port": 1}]}});
    let new = json!({"spec": {"min": 2, "name": "b", "ports": [{"name": "y", "port": 9}, {"name": "x", "port": 2}]}});
    let fixed = schema(&json!({"rule": "self.name == oldSelf.name", "message": "fixed"}));
    assert_eq!(errors(&fixed, &new, Some(&old)), ["spec: Invalid value: \"object\": fixed"]);
    assert!(errors(&fixed, &new, None).is_empty(), "at birth nothing changes");
    let first =
        schema(&json!({"rule": "oldSelf.hasValue() || self.min == 1", "optionalOldSelf": true, "message": "m"}));
    assert_eq!(errors(&first, &new, None), ["spec: Invalid value: \"object\": m"]);
    assert!(errors(&first, &new, Some(&old)).is_empty());
    // Items are followed by their keys.
    let mut grows = schema(&json!({"rule": "true"}));
    grows["properties"]["spec"]["properties"]["ports"]["items"]["x-kubernetes-validations"] =
        json!([{"rule": "self.port <= oldSelf.port", "message": "grew"}]);
    assert_eq!(errors(&grows, &new, Some(&old)), ["spec.ports[1]: Invalid value: \"object\": grew"]);
    // What was let in before the rule came stays as long as it does not change.
    let strict = schema(&json!({"rule": "self.min > 5"}));
    assert!(errors(&strict, &old, Some(&old)).is_empty());
    assert_eq!(errors(&strict, &new, Some(&old)).len(), 1);
}

#[test]
fn rules_that_cannot_be_evaluated_are_refused() {
    let check = |rule: Value, want: &str| {
        let found: Vec<String> = rules::check(&schema(&rule)).iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|error| error.contains(want)), "{rule}: {found:?}, wanted {want}");
    };
    let rule = |text: &str| json!({"rule": text});
    let at = "properties[spec].x-kubernetes-validations[0].rule";
    check(rule("self.nothing == 1"), "undefined field 'nothing'");
    check(rule("self.nothing == 1"), at);
    check(rule("self.min == 'x'"), "found no matching overload for '_==_' applied to '(int, string)'");
    check(rule("self.min + self.name == 1"), "found no matching overload for '_+_' applied to '(int, string)'");
    check(rule("self.min"), "must evaluate to a bool");
    check(rule("self.name.nothing()"), "undeclared reference to 'nothing'");
    check(rule("self.name.startsWith(1)"), "applied to 'string.(int)'");
    check(rule("nobody == 1"), "undeclared reference to 'nobody'");
    check(rule("self.min >"), "Syntax error");
    check(rule("self.list.map(x, x * 2) == ['a']"), "no matching overload");
    check(rule("self.list.all(x, x)"), "no matching overload");
    check(rule(""), "rule is not specified");
    check(rule("true\n&& true"), "message must be specified");
    check(json!({"rule": "true", "reason": "Because"}), "Unsupported value: \"Because\"");
    check(json!({"rule": "true", "fieldPath": ".nothing"}), "does not refer to a valid field");
    check(json!({"rule": "true", "messageExpression": "1"}), "must evaluate to a string");
    check(json!({"rule": "true", "optionalOldSelf": true}), "optionalOldSelf");
    let mut lost = schema(&rule("true"));
    lost["properties"]["spec"]["properties"]["list"]["items"]["x-kubernetes-validations"] =
        json!([{"rule": "self > oldSelf"}]);
    assert!(rules::check(&lost)[0].to_string().contains("uncorrelatable"));
    let root = json!({"type": "object", "properties": {"metadata": {"type": "object"}},
        "x-kubernetes-validations": [{"rule": "self.metadata.name != 'x'"}, {"rule": "has(self.metadata.labels)"}]});
    let found: Vec<String> = rules::check(&root).iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("undefined field 'labels'"), "{found:?}");
}

#[test]
fn no_rule_goes_on_for_long() {
    let list: Vec<u32> = (0..3_000).collect();
    let object = json!({"spec": {"list": list}});
    let slow = "self.list.all(a, self.list.all(b, self.list.all(c, a + b + c >= 0)))";
    let found = errors(&schema(&json!({"rule": slow})), &object, None);
    assert!(found[0].contains("running out of cost budget"), "{found:?}");
    let fine = "self.list.map(x, x + 1).filter(x, x % 2 == 0).size() == 1500";
    assert!(errors(&schema(&json!({"rule": fine})), &object, None).is_empty());
    for deep in [
        "[".repeat(4_000) + &"]".repeat(4_000) + " == []",
        "1".to_owned() + &"+1".repeat(2_000) + " == 1",
        "self".to_owned() + &".x".repeat(4_000) + " == 1",
        "true ? ".repeat(2_000) + "true" + &": true".repeat(2_000),
    ] {
        let found = rules::check(&schema(&json!({"rule": deep})));
        assert!(!found.is_empty(), "{}", &deep[..20]);
    }
    assert!(rules::check(&schema(&json!({"rule": "(".repeat(4_000) + "true" + &")".repeat(4_000)}))).len() < 2);
    let growing = "[1].map(x, ['ab'].map(a, a.replace('a', 'aaaaaaaaaaaaaaaa')))".to_owned() + ".size() == 1";
    assert!(errors(&schema(&json!({"rule": growing})), &object, None).is_empty());
}
