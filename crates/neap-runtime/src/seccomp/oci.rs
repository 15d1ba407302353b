//! The default profile as OCI's runtime configuration spells one. There no rule comes before another: a call that is
//! allowed under a condition is answered as an unknown one elsewhere, and not with "not permitted" as ours is.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{ALLOW, Action, Condition, Rule, Test, default, names};

/// `held`: bits of the container's capabilities.
pub(crate) fn default_as_oci(held: u64) -> Value {
    let filter = default::filter(held);
    let mut plain: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    let mut calls = Vec::new();
    for name in names::all() {
        let Some(rules) = names::number(name).and_then(|number| filter.rules.get(&number)) else { continue };
        match &rules[..] {
            [Rule { conditions, action }] if conditions.is_empty() => plain.entry(action.0).or_default().push(name),
            // Allowed but for one value.
            [Rule { conditions, action }, _] if *action != ALLOW => {
                let but: Vec<_> = conditions.iter().filter_map(|c| condition(c, true)).collect();
                calls.push(call(&[name], ALLOW, but));
            }
            several => {
                for rule in several.iter().filter(|rule| rule.action == ALLOW && !rule.conditions.is_empty()) {
                    let conditions = rule.conditions.iter().filter_map(|c| condition(c, false)).collect();
                    calls.push(call(&[name], ALLOW, conditions));
                }
            }
        }
    }
    calls.extend(plain.iter().map(|(action, names)| call(names, Action(*action), Vec::new())));
    let (action, number) = spelled(filter.otherwise);
    let mut all = json!({"defaultAction": action, "syscalls": calls});
    if let Some(number) = number {
        all["defaultErrnoRet"] = number.into();
    }
    all
}

fn call(names: &[&str], action: Action, conditions: Vec<Value>) -> Value {
    let (action, number) = spelled(action);
    let mut call = json!({"names": names, "action": action});
    if let Some(number) = number {
        call["errnoRet"] = number.into();
    }
    if !conditions.is_empty() {
        call["args"] = conditions.into();
    }
    call
}

fn spelled(action: Action) -> (&'static str, Option<u32>) {
    if action == ALLOW { ("SCMP_ACT_ALLOW", None) } else { ("SCMP_ACT_ERRNO", Some(action.0 & libc::SECCOMP_RET_DATA)) }
}

/// `but`: what it excludes. `None`: the default profile has no such test.
fn condition(condition: &Condition, but: bool) -> Option<Value> {
    let Test::Masked { mask, value } = condition.test else { return None };
    let index = condition.argument;
    Some(match but {
        // An argument that is read as 32 bits; the rest of such values is clean.
        true => json!({"index": index, "value": value, "op": "SCMP_CMP_NE"}),
        false => json!({"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}),
    })
}
