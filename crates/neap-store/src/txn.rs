//! What one atomic change consists of. Only the description: the index decides and applies.

use bytes::Bytes;

use crate::{Durable, Error, Revision};

/// Longest key, in bytes. A Kubernetes path of group, resource, namespace and name stays below 900.
pub const MAX_KEY_BYTES: usize = 4 * 1024;

/// Largest value, in bytes. The API server takes bodies of up to 3 MiB, as Kubernetes does.
pub const MAX_VALUE_BYTES: usize = 4 * 1024 * 1024;

/// Most steps in one transaction. It bounds the time the store's lock is held; etcd's default is 128.
pub const MAX_TXN_STEPS: usize = 1024;

/// Most bytes of keys and values in one transaction: two of the largest values.
pub const MAX_TXN_BYTES: usize = 2 * MAX_VALUE_BYTES;

/// What a key must look like for its transaction to go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// No condition.
    Any,
    /// The key does not exist.
    Absent,
    /// The key exists and was last changed at this revision.
    Revision(Revision),
}

/// What happens to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Create or replace the value.
    Put(Bytes),
    /// Remove the key. Removing an absent key is no change.
    Delete,
    /// Change nothing, only hold the transaction to the condition.
    Check,
}

/// Steps applied together at one new revision, or not at all. Keys must differ.
#[derive(Debug, Clone, Default)]
#[must_use = "a transaction does nothing until it is committed"]
pub struct Txn {
    pub(crate) steps: Vec<(Bytes, Expect, Op)>,
}

impl Txn {
    /// A transaction without steps.
    pub fn new() -> Txn {
        Txn::default()
    }

    /// Adds a step.
    pub fn step(mut self, key: impl Into<Bytes>, expect: Expect, op: Op) -> Txn {
        self.steps.push((key.into(), expect, op));
        self
    }

    /// Adds a step that creates or replaces a value.
    pub fn put(self, key: impl Into<Bytes>, expect: Expect, value: impl Into<Bytes>) -> Txn {
        self.step(key, expect, Op::Put(value.into()))
    }

    /// Adds a step that removes a key.
    pub fn delete(self, key: impl Into<Bytes>, expect: Expect) -> Txn {
        self.step(key, expect, Op::Delete)
    }

    /// Adds a condition on a key that the transaction does not change.
    pub fn check(self, key: impl Into<Bytes>, expect: Expect) -> Txn {
        self.step(key, expect, Op::Check)
    }

    /// Checks what can be checked without looking at the store.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let limit = |what, size, limit| {
            if size > limit {
                return Err(Error::TooLarge { what, size, limit });
            }
            Ok(())
        };
        limit("a transaction (steps)", self.steps.len(), MAX_TXN_STEPS)?;
        let mut total = 0;
        for (key, _, op) in &self.steps {
            limit("a key (bytes)", key.len(), MAX_KEY_BYTES)?;
            total += key.len();
            if let Op::Put(value) = op {
                limit("a value (bytes)", value.len(), MAX_VALUE_BYTES)?;
                total += value.len();
            }
        }
        limit("a transaction (bytes)", total, MAX_TXN_BYTES)?;
        if self.steps.len() > 1 {
            let mut keys: Vec<&Bytes> = self.steps.iter().map(|(key, _, _)| key).collect();
            keys.sort_unstable();
            if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
                let key = twice[0].clone();
                return Err(Error::DuplicateKey { key });
            }
        }
        Ok(())
    }
}

/// A transaction that went through.
#[derive(Debug)]
pub struct Committed {
    /// The revision of the change; the newest revision there is if the transaction changed nothing.
    pub revision: Revision,
    /// Tells when everything up to that revision is on disk.
    pub durable: Durable,
}
