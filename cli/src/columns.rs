//! Plain text in aligned columns.
//!
//! Text to the left, numbers to the right, two blanks between, nothing after the last character of a line: easy for
//! eyes, `grep` and `awk` alike. Control characters are shown escaped, so that a strange name cannot move the cursor.

use std::fmt::Write;

/// Blanks between two columns.
const GAP: usize = 2;

/// One heading and the side its values lean to.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    heading: &'static str,
    right: bool,
}

/// A column of text.
pub const fn text(heading: &'static str) -> Column {
    Column { heading, right: false }
}

/// A column of numbers.
pub const fn number(heading: &'static str) -> Column {
    Column { heading, right: true }
}

/// Rows under headings; every row has as many cells as there are columns.
#[derive(Debug)]
pub struct Columns<const N: usize> {
    columns: [Column; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Columns<N> {
    /// No rows yet.
    pub fn new(columns: [Column; N]) -> Self {
        Columns { columns, rows: Vec::new() }
    }

    /// Adds one row.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(cell));
    }

    /// All lines, headings first.
    pub fn render(&self) -> String {
        let mut widths = self.columns.map(|column| column.heading.chars().count());
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut out = String::new();
        self.line(&mut out, &widths, self.columns.map(|column| column.heading));
        for row in &self.rows {
            self.line(&mut out, &widths, row.each_ref().map(String::as_str));
        }
        out
    }

    fn line(&self, out: &mut String, widths: &[usize; N], cells: [&str; N]) {
        let mut line = String::new();
        for ((column, width), cell) in self.columns.iter().zip(widths).zip(cells) {
            // Writing into a String cannot fail.
            let _ = match column.right {
                true => write!(line, "{cell:>width$}"),
                false => write!(line, "{cell:<width$}"),
            };
            line.extend(std::iter::repeat_n(' ', GAP));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// What stands in a column: `-` for nothing.
fn cell(text: String) -> String {
    if text.is_empty() { "-".into() } else { printable(&text) }
}

/// Names come from elsewhere: none of them moves the cursor.
pub(crate) fn printable(text: &str) -> String {
    text.chars().flat_map(|each| if each.is_control() { each.escape_default().collect() } else { vec![each] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_leans_left_numbers_right_and_lines_end_without_blanks() {
        let mut columns = Columns::new([text("NAME"), number("PACKETS"), text("NOTE")]);
        columns.row(["ä-long-name".into(), "7".into(), String::new()]);
        columns.row(["b".into(), "123456789".into(), "x".into()]);
        assert_eq!(
            columns.render(),
            "NAME           PACKETS  NOTE\n\
             ä-long-name          7  -\n\
             b            123456789  x\n"
        );
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut columns = Columns::new([text("NAME")]);
        columns.row(["a\x1b[2Jb\n".into()]);
        assert_eq!(columns.render(), "NAME\na\\u{1b}[2Jb\\n\n");
    }

    #[test]
    fn no_rows_leave_the_headings() {
        assert_eq!(Columns::new([text("A"), number("B")]).render(), "A  B\n");
    }
}
