//! The way from the root to a field, kept on the stack while walking: nothing is allocated unless there is
//! something to report.

use std::fmt::Write as _;

use crate::limits::{NAME, cut};

/// One step and the steps before it.
#[derive(Clone, Copy)]
pub(crate) enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl Path<'_> {
    /// As kubectl prints it: `spec.containers[0].name`; the root is empty.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    /// As a field error names it; the whole object is `<nil>`.
    pub(crate) fn field(&self) -> String {
        match self {
            Path::Root => "<nil>".to_owned(),
            other => other.text(),
        }
    }

    fn write(&self, out: &mut String) {
        match self {
            Path::Root => {}
            Path::Field(parent, name) => {
                parent.write(out);
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(&cut(name, NAME));
            }
            Path::Item(parent, index) => {
                parent.write(out);
                write!(out, "[{index}]").expect("writing to a String cannot fail");
            }
        }
    }
}
