//! A table that leaves out columns for which there is no room.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Row, Table, TableState};

/// Width that the first column keeps, if its cells need it.
const SHORT: usize = 12;

struct Column {
    title: &'static str,
    /// Columns with the lowest number get room first. 0 is the first column: it is always shown, and shrinks.
    need: u8,
    cells: Vec<Line<'static>>,
}

/// Title and need of a column, and its cell for an item.
pub type Spec<'a, T> = (&'static str, u8, &'a dyn Fn(&T) -> Line<'static>);

impl Column {
    fn width(&self) -> usize {
        self.cells.iter().map(Line::width).max().unwrap_or(0).max(self.title.len())
    }

    /// A title stands above its cells.
    fn header(&self) -> Line<'static> {
        let alignment = self.cells.first().and_then(|cell| cell.alignment);
        Line { alignment, ..Line::from(self.title) }
    }
}

/// Draws as many columns and rows as there is room for, with the chosen row in sight.
pub fn draw<T, const N: usize>(frame: &mut Frame, area: Rect, items: &[T], columns: [Spec<T>; N], chosen: Option<usize>) {
    let column = |(title, need, cell): Spec<T>| Column { title, need, cells: items.iter().map(cell).collect() };
    let mut columns: Vec<Column> = columns.map(column).into();
    let marker = 2 * usize::from(chosen.is_some());
    let widths = fit(&mut columns, usize::from(area.width).saturating_sub(marker));
    let height = usize::from(area.height.saturating_sub(1));
    let rows = columns[0].cells.len();
    let start = chosen.unwrap_or(0).saturating_sub(height / 2).min(rows.saturating_sub(height));
    let header = Row::new(columns.iter().map(Column::header).collect::<Vec<_>>()).underlined();
    let row = |row: usize| Row::new(columns.iter().map(|column| column.cells[row].clone()).collect::<Vec<_>>());
    let table = Table::new((start..rows.min(start + height)).map(row), widths)
        .header(header)
        .column_spacing(1)
        .highlight_symbol("> ")
        .row_highlight_style(Style::new().add_modifier(Modifier::BOLD));
    let mut at = TableState::default().with_selected(chosen.map(|chosen| chosen - start));
    frame.render_stateful_widget(table, area, &mut at);
}

/// Removes the columns that do not fit into `room` cells, shortens the first one, and returns the widths.
fn fit(columns: &mut Vec<Column>, room: usize) -> Vec<Constraint> {
    let mut used = columns[0].width().min(SHORT.max(room / 3));
    let mut by_need: Vec<(u8, usize)> = columns.iter().skip(1).map(|column| (column.need, column.width() + 1)).collect();
    by_need.sort_unstable();
    let fits = by_need.iter().take_while(|(_, width)| {
        let fits = used + width <= room;
        used += if fits { *width } else { 0 };
        fits
    });
    let last = fits.last().map_or(0, |(need, _)| *need);
    columns.retain(|column| column.need <= last);
    let others: usize = columns.iter().skip(1).map(|column| column.width() + 1).sum();
    let first = columns[0].width().min(room.saturating_sub(others));
    columns[0].cells.iter_mut().for_each(|cell| shorten(cell, first));
    let widths = std::iter::once(first).chain(columns.iter().skip(1).map(Column::width));
    widths.map(|width| Constraint::Length(cells(width))).collect()
}

/// Ends a line that is too wide with `…`.
fn shorten(line: &mut Line<'static>, width: usize) {
    if line.width() <= width {
        return;
    }
    let mut text = String::new();
    for c in line.to_string().chars() {
        text.push(c);
        if Span::raw(&text).width() >= width {
            text.pop();
            break;
        }
    }
    *line = Line { spans: vec![(text + "…").into()], ..line.clone() };
}

/// A terminal has fewer than 65,536 cells in a row.
pub fn cells(n: usize) -> u16 {
    n.try_into().unwrap_or(u16::MAX)
}
