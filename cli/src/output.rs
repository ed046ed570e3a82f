//! Prints command results: JSON for programs, otherwise text and tables. Only this module writes to stdout.

use std::io::Write;

use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;

/// Shown in place of a missing value.
const NOTHING: &str = "-";

/// The output format.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// JSON, or text.
    pub const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a result: as JSON, or as the text that `people` returns.
    pub fn print<T: Serialize>(self, result: &T, people: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        let text = if self.json { serde_json::to_string_pretty(result)? } else { people(result) };
        writeln!(std::io::stdout().lock(), "{}", text.trim_end_matches('\n'))?;
        Ok(())
    }

    /// Prints a remark in text mode only, so that JSON output stays valid.
    pub fn note(self, text: &str) {
        if !self.json {
            eprintln!("{text}");
        }
    }
}

/// A table with aligned columns and no borders, easy to read and to process with `grep` and `awk`.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    table.add_rows(rows.into_iter().map(|row| row.into_iter().map(one_line).collect::<Vec<_>>()));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// The table, or `empty` if it has no rows.
pub fn table_or(header: &[&str], rows: Vec<Vec<String>>, empty: &str) -> String {
    if rows.is_empty() { empty.to_owned() } else { table(header, rows) }
}

/// Replaces control characters and line breaks in foreign text, which could rearrange a terminal.
fn one_line(text: String) -> String {
    let plain: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    if plain.is_empty() { NOTHING.to_owned() } else { plain }
}

/// The value, or a dash.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}

/// A time, to the second.
pub fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A member of a JSON object as text. Lists are joined, and a missing value is a dash.
pub fn text(object: &Value, name: &str) -> String {
    plain(object.get(name).unwrap_or(&Value::Null))
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => NOTHING.to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => NOTHING.to_owned(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Table rows from a list of JSON objects, with one cell for each name.
pub fn rows(list: &Value, names: &[&str]) -> Vec<Vec<String>> {
    let objects = list.as_array().map(Vec::as_slice).unwrap_or_default();
    objects.iter().map(|object| names.iter().map(|name| text(object, name)).collect()).collect()
}

/// `1 letter`, `2 letters`.
pub fn count(number: i64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_is_aligned_and_bare() {
        let rows = [["demo", "1"], ["a-longer-one", "2"]].map(|row| row.map(str::to_owned).to_vec());
        let lines = table(&["NAME", "N"], rows);
        assert_eq!(lines.lines().collect::<Vec<_>>(), ["NAME          N", "demo          1", "a-longer-one  2"]);
    }

    #[test]
    fn what_others_wrote_cannot_break_a_row() {
        let lines = table(&["DETAIL"], [vec!["two\nlines\u{1b}[2J".to_owned()], vec![String::new()]]);
        assert_eq!(lines.lines().collect::<Vec<_>>(), ["DETAIL", "two lines [2J", "-"]);
    }

    #[test]
    fn an_empty_list_is_a_sentence() {
        assert_eq!(table_or(&["NAME"], Vec::new(), "there are none"), "there are none");
    }

    #[test]
    fn members_of_an_object_become_cells() {
        let list = json!([{"id": "x", "attempts": 2, "engagement": ["read", "clicked"], "provider": null}]);
        let cells = rows(&list, &["id", "attempts", "engagement", "provider", "none"]);
        assert_eq!(cells, [["x", "2", "read,clicked", "-", "-"]]);
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(
            [count(0, "letter"), count(1, "letter"), count(2, "letter")],
            ["0 letters", "1 letter", "2 letters"]
        );
    }
}
