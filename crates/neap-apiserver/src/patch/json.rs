//! The two patches that need no schema: RFC 6902 (JSON patch) and RFC 7386 (JSON merge patch).

use json_patch::{AddOperation, PatchErrorKind, PatchOperation};
use serde_json::Value;

use super::PatchError;
use crate::limits;

/// Operations one JSON patch may carry, as in Kubernetes: bounds the work of one request.
const MAX_OPERATIONS: usize = 10_000;

/// Bytes that the copies of one JSON patch may come to (Kubernetes: `JSONPatchMaxCopyBytes`): each may double the object.
const MAX_COPIED: usize = 3 * 1024 * 1024;

/// Bytes that one JSON patch may move to a deeper place: there all that is moved is looked at, each time.
const MAX_MOVED: usize = 32 * 1024 * 1024;

/// Applies a JSON patch. On an error the object is as it was.
pub fn json_patch(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let Value::Array(list) = patch else {
        return Err(PatchError::malformed("json: a JSON patch is a list of operations"));
    };
    if list.len() > MAX_OPERATIONS {
        return Err(PatchError::TooManyOperations { got: list.len(), most: MAX_OPERATIONS });
    }
    let mut changed = object.clone();
    let (mut copied, mut moved) = (0, 0);
    for operation in list {
        let mut operation = serde_json::from_value::<PatchOperation>(operation.clone()).map_err(|error| {
            let shown = operation.get("op").and_then(Value::as_str).unwrap_or_default();
            PatchError::Failed { reason: format!("Unexpected kind: {shown}: {error}") }
        })?;
        // The library Kubernetes uses replaces in an object what is not there.
        if let PatchOperation::Replace(replace) = &operation
            && replace.path.parent().is_some_and(|p| p.resolve(&changed).is_ok_and(Value::is_object))
        {
            operation = PatchOperation::Add(AddOperation { path: replace.path.clone(), value: replace.value.clone() });
        }
        let to = operation.path();
        let brought = match &operation {
            PatchOperation::Copy(op) => op.from.resolve(&changed).ok(),
            PatchOperation::Move(op) => op.from.resolve(&changed).ok(),
            PatchOperation::Add(op) => Some(&op.value),
            PatchOperation::Replace(op) => Some(&op.value),
            PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
        };
        if let Some(brought) = brought {
            if matches!(operation, PatchOperation::Copy(_)) {
                copied += limits::weight(brought);
                if copied > MAX_COPIED {
                    return Err(PatchError::CopiesTooMuch { most: MAX_COPIED });
                }
            }
            let sinks = match &operation {
                PatchOperation::Move(op) => to.count() > op.from.count(),
                _ => true,
            };
            if sinks && matches!(operation, PatchOperation::Move(_)) {
                moved += limits::weight(brought);
                if moved > MAX_MOVED {
                    return Err(PatchError::CopiesTooMuch { most: MAX_MOVED });
                }
            }
            if sinks && to.count() + limits::depth(brought, limits::DEPTH) > limits::DEPTH {
                let reason = format!("{to}: the object would be nested deeper than {} levels", limits::DEPTH);
                return Err(PatchError::Failed { reason });
            }
        }
        json_patch::patch(&mut changed, std::slice::from_ref(&operation))
            .map_err(|error| PatchError::Failed { reason: explain(&operation, &error.kind) })?;
    }
    *object = changed;
    Ok(())
}

/// Applies a JSON merge patch: null removes, objects merge, everything else replaces.
pub fn merge_patch(object: &mut Value, patch: &Value) {
    json_patch::merge(object, patch);
}

/// A failed operation in the words of the library Kubernetes uses.
fn explain(operation: &PatchOperation, kind: &PatchErrorKind) -> String {
    let path = operation.path();
    match (operation, kind) {
        (PatchOperation::Test(_), PatchErrorKind::TestFailed) => {
            format!("testing value {path} failed: test failed")
        }
        (PatchOperation::Test(_), _) => format!("error in test for path: '{path}': missing path: missing value"),
        (PatchOperation::Add(_), _) => {
            format!("add operation does not apply: doc is missing path: \"{path}\": missing value")
        }
        (PatchOperation::Remove(_), _) => format!(
            "error in remove for path: '{path}': Unable to remove nonexistent key: {}: missing value",
            last(path.as_str())
        ),
        (PatchOperation::Replace(_), _) => {
            format!("replace operation does not apply: doc is missing key: {path}: missing value")
        }
        (PatchOperation::Move(op), PatchErrorKind::CannotMoveInsideItself) => {
            format!("error in move for path: '{path}': cannot move {} into itself", op.from)
        }
        (PatchOperation::Move(op), _) => {
            format!("move operation does not apply: doc is missing from path: {}: missing value", op.from)
        }
        (PatchOperation::Copy(op), _) => {
            format!("copy operation does not apply: doc is missing from path: {}: missing value", op.from)
        }
    }
}

fn last(pointer: &str) -> &str {
    pointer.rsplit('/').next().unwrap_or_default()
}
