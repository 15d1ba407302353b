//! `neap get`: what there is, as the server prints it.

use std::io::Write;

use clap::ValueEnum as _;
use http::Request;
use serde::Deserialize;
use serde_json::Value;

use crate::connect::connect;
use crate::{Env, Error, Target};

#[derive(Debug, clap::Args)]
pub struct Get {
    #[command(flatten)]
    target: Target,
    /// What to list: services, revisions, routes, configurations or pods; any other word is the name of a service.
    #[arg(default_value = "services")]
    what: String,
    /// Only this one.
    name: Option<String>,
    /// In all namespaces.
    #[arg(short = 'A', long, conflicts_with = "name")]
    all_namespaces: bool,
    /// As a table, or whole.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum What {
    #[value(aliases = ["service", "ksvc"])]
    Services,
    #[value(aliases = ["revision", "rev"])]
    Revisions,
    #[value(aliases = ["route", "rt"])]
    Routes,
    #[value(aliases = ["configuration", "config"])]
    Configurations,
    #[value(aliases = ["pod", "po"])]
    Pods,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
    Yaml,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    column_definitions: Vec<Column>,
    #[serde(default)]
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
    #[serde(default)]
    priority: i32,
}

#[derive(Deserialize)]
struct Row {
    cells: Vec<Value>,
    #[serde(default)]
    object: Value,
}

/// Kubernetes prints its own kinds so; any client may ask for it.
const AS_TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

impl Get {
    pub(crate) async fn run(self, env: &Env, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        let (what, name) = self.wanted()?;
        let connection = connect(&self.target, env).await?;
        let (root, plural) = match what {
            What::Services => ("/apis/serving.knative.dev/v1", "services"),
            What::Revisions => ("/apis/serving.knative.dev/v1", "revisions"),
            What::Routes => ("/apis/serving.knative.dev/v1", "routes"),
            What::Configurations => ("/apis/serving.knative.dev/v1", "configurations"),
            What::Pods => ("/api/v1", "pods"),
        };
        let mut path = if self.all_namespaces {
            format!("{root}/{plural}")
        } else {
            format!("{root}/namespaces/{}/{plural}", connection.namespace)
        };
        if let Some(name) = &name {
            path = format!("{path}/{name}");
        }
        let accept = if self.output == Output::Table { AS_TABLE } else { "application/json" };
        let request =
            Request::get(path).header("accept", accept).body(Vec::new()).map_err(|e| Error::Usage(e.to_string()))?;
        let answer: Value = connection.client.request(request).await.map_err(|e| connection.explain(e))?;
        match self.output {
            Output::Json => serde_json::to_writer_pretty(&mut *out, &answer).map_err(std::io::Error::from)?,
            Output::Yaml => {
                let text = serde_yaml::to_string(&answer).map_err(std::io::Error::other)?;
                out.write_all(text.as_bytes())?;
                return Ok(());
            }
            Output::Table => {
                let table: Table = serde_json::from_value(answer).map_err(std::io::Error::from)?;
                if table.rows.is_empty() {
                    match self.all_namespaces {
                        true => eprintln!("no {plural} in any namespace"),
                        false => eprintln!("no {plural} in namespace {}", connection.namespace),
                    }
                    return Ok(());
                }
                return Ok(out.write_all(render(&table, self.all_namespaces).as_bytes())?);
            }
        }
        Ok(writeln!(out)?)
    }

    /// What to show, and which: a word that is no kind names a service.
    fn wanted(&self) -> Result<(What, Option<String>), Error> {
        match (What::from_str(&self.what, true), &self.name) {
            (Ok(what), name) => Ok((what, name.clone())),
            (Err(_), None) if !self.all_namespaces => Ok((What::Services, Some(self.what.clone()))),
            (Err(_), _) => Err(Error::Usage(format!(
                "{:?} is nothing to list: write services, revisions, routes, configurations or pods",
                self.what
            ))),
        }
    }
}

fn render(table: &Table, namespaces: bool) -> String {
    let shown: Vec<usize> =
        (0..table.column_definitions.len()).filter(|n| table.column_definitions[*n].priority == 0).collect();
    let mut lines = Vec::new();
    let mut head: Vec<String> = shown.iter().map(|n| table.column_definitions[*n].name.to_uppercase()).collect();
    if namespaces {
        head.insert(0, "NAMESPACE".into());
    }
    lines.push(head);
    for row in &table.rows {
        let mut line: Vec<String> = shown.iter().map(|n| cell(row.cells.get(*n))).collect();
        if namespaces {
            line.insert(0, cell(row.object.pointer("/metadata/namespace")));
        }
        lines.push(line);
    }
    columns(&lines)
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Columns three spaces apart; no spaces at the end of a line.
pub(crate) fn columns(lines: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..lines.first().map_or(0, Vec::len))
        .map(|n| lines.iter().filter_map(|line| line.get(n)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_word_that_is_no_kind_names_a_service() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            get: Get,
        }
        let check = |words: &str, want: Option<(What, Option<&str>)>| {
            let words = ["get"].into_iter().chain(words.split_whitespace());
            let got = <Line as clap::Parser>::try_parse_from(words).ok().and_then(|line| line.get.wanted().ok());
            assert_eq!(got, want.map(|(what, name)| (what, name.map(str::to_owned))));
        };
        check("", Some((What::Services, None)));
        check("hello", Some((What::Services, Some("hello"))));
        check("rev hello-00001", Some((What::Revisions, Some("hello-00001"))));
        check("hello there", None);
        check("-A services hello", None);
        check("-A hello", None);
    }

    #[test]
    fn tables_are_aligned() {
        let table: Table = serde_json::from_value(json!({
            "columnDefinitions": [{"name": "Name"}, {"name": "Hidden", "priority": 1}, {"name": "Ready"}],
            "rows": [{"cells": ["a-long-name", "x", "True"], "object": {"metadata": {"namespace": "n"}}}, {"cells": ["b", "x", null]}],
        }))
        .expect("a table");
        assert_eq!(render(&table, false), "NAME          READY\na-long-name   True\nb\n");
        assert!(render(&table, true).starts_with("NAMESPACE   NAME          READY\nn           a-long-name   True\n"));
    }
}
