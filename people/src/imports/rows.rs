//! Reads bytes and returns checked rows, in chunks.

use serde::{Deserialize, Serialize};
use std::{
    cell::Cell,
    io::{self, BufRead, BufReader, Read},
    rc::Rc,
    time::{Duration, Instant},
};
use utoipa::ToSchema;

use csv::{ByteRecord, ReaderBuilder, Trim};
use domain::contract::{
    contact::{ContactChange, is_user_id},
    submission::FieldError,
};
use serde_json::{Map, Value};

/// How the rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A header row, then a row for each person.
    Csv,
    /// A JSON object for each person, one a line.
    Ndjson,
}

/// A fault of a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RowFault {
    /// The line it begins at, from 1.
    pub line: u64,
    /// The field or column; `row` for the whole.
    #[schema(example = "email")]
    pub field: String,
    /// How to correct it.
    pub message: String,
}

/// Rows of a chunk.
const ROWS_MAX: usize = 1000;
/// A chunk that takes longer to fill is passed on early, so that the progress is visible.
const FILL_TIME: Duration = Duration::from_secs(2);
/// Longest row, in bytes.
const ROW_BYTES_MAX: u64 = 256 * 1024;
/// The size of one read.
const BUFFER_BYTES: usize = 64 * 1024;
/// The bytes that may have been read since the start of an unfinished row.
const AHEAD_BYTES_MAX: u64 = ROW_BYTES_MAX + 64 * 1024;
/// The field name for a fault of the whole row.
const ROW: &str = "row";

/// Rows that are stored together.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Where each of the changes stands.
    pub lines: Vec<u64>,
    /// The rows that hold.
    pub changes: Vec<ContactChange>,
    /// The faults of the other rows.
    pub faults: Vec<RowFault>,
    /// How many others there are.
    pub refused: i64,
    /// Bytes read so far, from the beginning of the file.
    pub bytes: u64,
}

/// Why the rest cannot be read.
#[derive(Debug)]
pub enum Broken {
    /// The header row cannot be used.
    Header(Vec<FieldError>),
    /// The row that begins there has no end.
    RowTooLong(u64),
    /// Reading failed.
    Source(io::Error),
}

/// Reads all rows; `take` returns whether more are wanted. Rows read before an error are passed on too.
pub fn read(source: impl Read, format: Format, take: impl FnMut(Chunk) -> bool) -> Result<(), Broken> {
    let mut filling = Filling { chunk: Chunk::default(), since: Instant::now(), is_wanted: true, take };
    let ended = match format {
        Format::Csv => read_csv(source, &mut filling),
        Format::Ndjson => read_ndjson(source, &mut filling),
    };
    if filling.is_wanted {
        filling.flush();
    }
    ended
}

/// The chunk in the making.
struct Filling<F> {
    chunk: Chunk,
    since: Instant,
    is_wanted: bool,
    take: F,
}

impl<F: FnMut(Chunk) -> bool> Filling<F> {
    /// Adds a row; returns whether to continue.
    fn add(&mut self, line: u64, row: Result<ContactChange, Vec<FieldError>>, bytes: u64) -> bool {
        match row {
            Ok(change) => {
                self.chunk.lines.push(line);
                self.chunk.changes.push(change);
            }
            Err(faults) => {
                self.chunk.refused += 1;
                let fault = |FieldError { field, message }| RowFault { line, field, message };
                self.chunk.faults.extend(faults.into_iter().map(fault));
            }
        }
        self.chunk.bytes = bytes;
        let is_full = self.chunk.lines.len() + usize::try_from(self.chunk.refused).unwrap_or(0) >= ROWS_MAX;
        if is_full || self.since.elapsed() > FILL_TIME {
            self.flush();
        }
        self.is_wanted
    }

    fn flush(&mut self) {
        let bytes = self.chunk.bytes;
        self.since = Instant::now();
        self.is_wanted = (self.take)(std::mem::take(&mut self.chunk));
        self.chunk.bytes = bytes;
    }
}

fn whole(message: &str) -> Vec<FieldError> {
    vec![FieldError::new(ROW, message)]
}

fn read_ndjson(source: impl Read, filling: &mut Filling<impl FnMut(Chunk) -> bool>) -> Result<(), Broken> {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, source);
    let (mut text, mut line, mut bytes) = (Vec::new(), 0, 0);
    loop {
        text.clear();
        let read = reader.by_ref().take(ROW_BYTES_MAX).read_until(b'\n', &mut text).map_err(Broken::Source)?;
        if read == 0 {
            filling.chunk.bytes = bytes;
            return Ok(());
        }
        line += 1;
        bytes += u64::try_from(read).unwrap_or_default();
        let row = if text.ends_with(b"\n") || bytes_of(&text) < ROW_BYTES_MAX {
            let text = text.strip_prefix(b"\xef\xbb\xbf").filter(|_| line == 1).unwrap_or(&text).trim_ascii();
            if text.is_empty() {
                continue;
            }
            object(text)
        } else {
            bytes += skip_line(&mut reader).map_err(Broken::Source)?;
            Err(whole("must have at most 256 KiB"))
        };
        if !filling.add(line, row, bytes) {
            return Ok(());
        }
    }
}

fn bytes_of(text: &[u8]) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

/// The parser's message might quote the input.
fn object(text: &[u8]) -> Result<ContactChange, Vec<FieldError>> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(members)) => ContactChange::read(members, None),
        Ok(_) | Err(_) => Err(whole("must be a JSON object")),
    }
}

/// Reads to the next line; returns the number of bytes.
fn skip_line(reader: &mut impl BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = reader.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(buffer.len(), |end| end + 1);
        let is_over = end.is_some() || buffer.is_empty();
        reader.consume(taken);
        skipped += u64::try_from(taken).unwrap_or_default();
        if is_over {
            return Ok(skipped);
        }
    }
}

/// The field for the value of a column.
enum Column {
    Member(&'static str),
    QuietStart,
    QuietEnd,
    Attribute(String),
}

const MEMBERS: [&str; 7] = ["user_id", "id", "email", "phone", "name", "locale", "time_zone"];
/// Names that are not attributes, because they have another meaning elsewhere.
const TAKEN: [&str; 4] = ["quiet_hours", "attributes", "devices", "preferences"];

fn columns(header: &ByteRecord) -> Result<Vec<Column>, Broken> {
    let refuse = |message: &str| Err(Broken::Header(vec![FieldError::new("header", message)]));
    let mut names: Vec<&str> = Vec::with_capacity(header.len());
    for cell in header {
        match str::from_utf8(cell) {
            Ok(name) if is_user_id(name) && !TAKEN.contains(&name) && !names.contains(&name) => names.push(name),
            Ok(_) => {
                return refuse(
                    "must name each column once, in 1 to 200 bytes; quiet hours are `quiet_start` and `quiet_end`, attributes a column each",
                );
            }
            Err(_) => return refuse("must be UTF-8"),
        }
    }
    if names.iter().filter(|name| ["user_id", "id"].contains(name)).count() != 1 {
        return refuse("must name the column `user_id`");
    }
    let column = |name: &&str| match *name {
        "quiet_start" => Column::QuietStart,
        "quiet_end" => Column::QuietEnd,
        name => MEMBERS
            .iter()
            .find(|member| **member == name)
            .map_or_else(|| Column::Attribute(name.to_owned()), |member| Column::Member(member)),
    };
    Ok(names.iter().map(column).collect())
}

/// An empty cell changes nothing.
fn row(columns: &[Column], record: &ByteRecord) -> Result<ContactChange, Vec<FieldError>> {
    if record.len() != columns.len() {
        return Err(whole("must have as many cells as the header"));
    }
    let (mut members, mut quiet, mut attributes) = (Map::new(), Map::new(), Map::new());
    for (column, cell) in columns.iter().zip(record).filter(|(_, cell)| !cell.is_empty()) {
        let Ok(text) = str::from_utf8(cell) else { return Err(whole("must be UTF-8")) };
        match column {
            Column::Member(name) => members.insert((*name).to_owned(), text.into()),
            Column::QuietStart => quiet.insert("start".to_owned(), text.into()),
            Column::QuietEnd => quiet.insert("end".to_owned(), text.into()),
            Column::Attribute(name) => attributes.insert(name.clone(), text.into()),
        };
    }
    for (name, object) in [("quiet_hours", quiet), ("attributes", attributes)] {
        if !object.is_empty() {
            members.insert(name.to_owned(), object.into());
        }
    }
    ContactChange::read(members, None).map_err(|faults| faults.into_iter().map(as_column).collect())
}

fn as_column(mut fault: FieldError) -> FieldError {
    if let Some(end) = fault.field.strip_prefix("quiet_hours.") {
        fault.field = format!("quiet_{end}");
    }
    fault
}

/// A row longer than any row.
#[derive(Debug, thiserror::Error)]
#[error("a row goes on and on")]
struct Endless;

/// Stops reading when one row is too long.
struct Bounded<R> {
    source: R,
    read: u64,
    row_began: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read.saturating_sub(self.row_began.get()) > AHEAD_BYTES_MAX {
            return Err(io::Error::other(Endless));
        }
        let read = self.source.read(buffer)?;
        self.read += u64::try_from(read).unwrap_or_default();
        Ok(read)
    }
}

/// Spreadsheets begin their files with these bytes.
const BYTE_ORDER_MARK: [u8; 3] = *b"\xef\xbb\xbf";

/// The source without a byte order mark, and the length of that mark. The parser recognizes it only in a longer first
/// read.
fn unmarked(mut source: impl Read) -> Result<(impl Read, u64), Broken> {
    let mut head = Vec::with_capacity(BYTE_ORDER_MARK.len());
    source.by_ref().take(bytes_of(&BYTE_ORDER_MARK)).read_to_end(&mut head).map_err(Broken::Source)?;
    let is_mark = head == BYTE_ORDER_MARK;
    let skipped = if is_mark { bytes_of(&std::mem::take(&mut head)) } else { 0 };
    Ok((io::Cursor::new(head).chain(source), skipped))
}

fn read_csv(source: impl Read, filling: &mut Filling<impl FnMut(Chunk) -> bool>) -> Result<(), Broken> {
    let (source, skipped) = unmarked(source)?;
    let row_began = Rc::new(Cell::new(0));
    let source = Bounded { source, read: 0, row_began: Rc::clone(&row_began) };
    let mut reader =
        ReaderBuilder::new().flexible(true).trim(Trim::All).buffer_capacity(BUFFER_BYTES).from_reader(source);
    let header = reader.byte_headers().map_err(|error| broken(error, 1))?;
    let columns = columns(header)?;
    let mut next = 1 + lines_of(header);
    let mut record = ByteRecord::new();
    loop {
        let (bytes, line) = (reader.position().byte(), reader.position().line());
        row_began.set(bytes);
        if !reader.read_byte_record(&mut record).map_err(|error| broken(error, line))? {
            filling.chunk.bytes = bytes + skipped;
            return Ok(());
        }
        // The parser counts a line at its last byte. Of `\r\n` it has not read that yet.
        let line = record.position().map_or(line, csv::Position::line).max(next);
        next = line + lines_of(&record);
        if !filling.add(line, row(&columns, &record), reader.position().byte() + skipped) {
            return Ok(());
        }
    }
}

/// Lines that a row takes up.
fn lines_of(record: &ByteRecord) -> u64 {
    let breaks = record.iter().flatten().filter(|byte| **byte == b'\n').count();
    1 + u64::try_from(breaks).unwrap_or_default()
}

fn broken(error: csv::Error, line: u64) -> Broken {
    match error.into_kind() {
        csv::ErrorKind::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<Endless>()) => {
            Broken::RowTooLong(line)
        }
        csv::ErrorKind::Io(error) => Broken::Source(error),
        other => Broken::Source(io::Error::other(format!("{other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a few bytes per read, so that rows span reads.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(buffer.len()).min(3);
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn chunks(text: &[u8], format: Format) -> Result<Vec<Chunk>, Broken> {
        let mut all = Vec::new();
        read(Trickle(text), format, |chunk| {
            all.push(chunk);
            true
        })?;
        Ok(all)
    }

    fn only(text: &str, format: Format) -> Chunk {
        let mut all = chunks(text.as_bytes(), format).unwrap();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    fn faults(chunk: &Chunk) -> Vec<(u64, &str)> {
        chunk.faults.iter().map(|fault| (fault.line, fault.field.as_str())).collect()
    }

    #[test]
    fn columns_become_fields_and_the_others_attributes() {
        let text = "\u{feff}user_id,email,quiet_start,quiet_end,tier\nada,ada@example.com,22:00,08:00,gold\r\n\"bob, jr\",,,,\n";
        let chunk = only(text, Format::Csv);
        let [ada, bob] = &chunk.changes[..] else { panic!("{chunk:?}") };
        let mut person = domain::Person::unknown("ada");
        ada.clone().apply(&mut person).unwrap();
        assert_eq!((ada.id.as_str(), bob.id.as_str()), ("ada", "bob, jr"));
        assert_eq!((person.email.as_deref(), person.quiet_hours.unwrap().start), (Some("ada@example.com"), 1320));
        assert_eq!(person.attributes["tier"], "gold");
        assert_eq!((chunk.lines.as_slice(), chunk.bytes), (&[2, 3][..], u64::try_from(text.len()).unwrap()));
    }

    #[test]
    fn a_bad_row_is_told_by_line_and_column_and_the_others_go_on() {
        let text = "user_id,phone,quiet_start\na,+43123456789,\nb,0123,\n,+43123456789,\nd\n\"e\n\",+43123456789,\nf,,22:00\n\ng,,\n";
        let chunk = only(text, Format::Csv);
        assert_eq!(faults(&chunk), [(3, "phone"), (4, "user_id"), (5, "row"), (8, "quiet_end")]);
        assert_eq!((chunk.lines.clone(), chunk.refused), (vec![2, 6, 9], 4), "a row behind an empty line begins there");
        assert!(!format!("{:?}", chunk.faults).contains("0123"));
    }

    #[test]
    fn a_header_that_cannot_be_used_ends_it() {
        for text in ["", "email,name\n", "user_id,id\n", "user_id,email,email\n", "user_id,\n", "user_id,attributes\n"]
        {
            assert!(matches!(chunks(text.as_bytes(), Format::Csv), Err(Broken::Header(_))), "{text}");
        }
    }

    #[test]
    fn a_quote_that_is_never_closed_ends_it_and_what_came_before_is_kept() {
        let text = format!("user_id,name\na,x\nb,\"{}", "y\n".repeat(400_000));
        let mut seen = 0;
        let ended = read(text.as_bytes(), Format::Csv, |chunk| {
            seen += chunk.lines.len();
            true
        });
        assert!(matches!(ended, Err(Broken::RowTooLong(3))), "{ended:?}");
        assert_eq!(seen, 1);
    }

    #[test]
    fn lines_of_json_are_rows() {
        let long = format!("{{\"id\":\"{}\"}}", "x".repeat(300_000));
        let text = format!(
            "{{\"id\":\"ada\",\"attributes\":{{\"n\":1}}}}\n\n[1]\n{{\"canary\n{long}\n{{\"user_id\":\"bob\",\"Colour\":1}}\n{{\"user_id\":\"eve\"}}"
        );
        let mut all = chunks(text.as_bytes(), Format::Ndjson).unwrap();
        let chunk = all.remove(0);
        assert_eq!(faults(&chunk), [(3, "row"), (4, "row"), (5, "row"), (6, "Colour")]);
        assert_eq!((chunk.lines.as_slice(), chunk.bytes), (&[1, 7][..], u64::try_from(text.len()).unwrap()));
        assert!(!format!("{:?}", chunk.faults).contains("canary"));
    }

    #[test]
    fn a_large_file_comes_in_chunks_and_stops_when_nobody_wants_it() {
        let text: String = (0..2500).map(|n| format!("{{\"id\":\"u{n}\"}}\n")).collect();
        let sizes: Vec<usize> =
            chunks(text.as_bytes(), Format::Ndjson).unwrap().iter().map(|chunk| chunk.lines.len()).collect();
        assert_eq!(sizes, [1000, 1000, 500]);
        let mut taken = 0;
        read(text.as_bytes(), Format::Ndjson, |_| {
            taken += 1;
            false
        })
        .unwrap();
        assert_eq!(taken, 1);
    }
}
