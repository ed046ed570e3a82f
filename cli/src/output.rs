//! What a command prints: JSON for programs, else text and tables for people. Nothing else writes to stdout.

use std::io::Write;

use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;

/// Stands for what is not there.
const NOTHING: &str = "-";

/// Where results go, and in which form.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// JSON, or text for people.
    pub const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a result: as JSON, or as the text that `people` makes of it.
    pub fn print<T: Serialize>(self, result: &T, people: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        let text = if self.json { serde_json::to_string_pretty(result)? } else { people(result) };
        writeln!(std::io::stdout().lock(), "{}", text.trim_end_matches('\n'))?;
        Ok(())
    }

    /// Tells people something beside the result; programs are not disturbed.
    pub fn note(self, text: &str) {
        if !self.json {
            eprintln!("{text}");
        }
    }
}

/// A table with aligned columns and nothing drawn around them, so that `grep`, `awk` and the eye can read it.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    table.add_rows(rows.into_iter().map(|row| row.into_iter().map(one_line).collect::<Vec<_>>()));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// The table, or a sentence where it would be empty.
pub fn table_or(header: &[&str], rows: Vec<Vec<String>>, empty: &str) -> String {
    if rows.is_empty() { empty.to_owned() } else { table(header, rows) }
}

/// What others wrote may hold line breaks and control characters; neither may rearrange a terminal.
fn one_line(text: String) -> String {
    let plain: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    if plain.is_empty() { NOTHING.to_owned() } else { plain }
}

/// A value, or the sign for none.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}

/// A time, to the second.
pub fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A member of a JSON object as text; lists are joined, what is not there is a dash.
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

/// The rows of a table from a list of JSON objects: one cell for each name.
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
