//! The tables `results.csv` and `results.parquet`, with a row for each image. Pure: records in, bytes out, some at a time.
//!
//! Both files have the same columns and are sorted by image. `docs/src/reference/results.md` explains every column.

use std::sync::Arc;

use parquet::basic::{LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::Type;
use proto::{ColourTransform, FineTuned, JobId, ResultRecord};

use crate::cell::guarded;
use crate::run::{Outcome, class_name, image};
use crate::summary::SeedMetric;

/// The colour transforms with the names of their columns.
pub(crate) const COLOURS: [(&str, ColourTransform); 5] = [
    ("brightness", ColourTransform::Brightness),
    ("contrast", ColourTransform::Contrast),
    ("saturation", ColourTransform::Saturation),
    ("hue", ColourTransform::Hue),
    ("gamma", ColourTransform::Gamma),
];

/// Makes both files, some rows at a time.
///
/// `results.csv` is RFC 4180 with a header line; an absent value is empty, and no text is a formula ([`guarded`]). `results.parquet` has a row group for each call and no
/// compression (most bytes are digits of measurements and digests); an absent value is null.
pub struct Export {
    parquet: SerializedFileWriter<Vec<u8>>,
    begun: bool,
}

/// Next bytes of the two files.
pub struct Piece {
    pub csv: Vec<u8>,
    pub parquet: Vec<u8>,
}

const TAKES: &str = "a Vec takes every write, and the schema is made from the columns";
const WRITTEN: &str = "a Vec takes every write, and every record has one field per column";

impl Default for Export {
    fn default() -> Export {
        let schema = schema(&columns(vec![])).expect("the columns have different names");
        let file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(WriterProperties::default()));
        Export { parquet: file.expect(TAKES), begun: false }
    }
}

impl Export {
    /// Rows in the order of their images, after those of the calls before.
    pub(crate) fn add(&mut self, rows: Vec<Outcome>) -> Piece {
        let n = rows.len();
        let columns = columns(rows);
        let mut csv = csv::Writer::from_writer(Vec::new());
        if !std::mem::replace(&mut self.begun, true) {
            csv.write_record(columns.iter().map(|c| &c.name)).expect(WRITTEN);
        }
        for row in 0..n {
            csv.write_record(columns.iter().map(|c| c.values.text(row))).expect(WRITTEN);
        }
        if n > 0 {
            write_group(&mut self.parquet, &columns).expect(TAKES);
        }
        Piece { csv: csv.into_inner().expect(WRITTEN), parquet: std::mem::take(self.parquet.inner_mut()) }
    }

    /// The end of both files.
    pub fn finish(mut self) -> Piece {
        // A run without images has a header, too.
        let rest = if self.begun { Piece { csv: vec![], parquet: vec![] } } else { self.add(vec![]) };
        let parquet = [rest.parquet, self.parquet.into_inner().expect(TAKES)].concat();
        Piece { csv: rest.csv, parquet }
    }
}

struct Column<'a> {
    name: String,
    values: Values<'a>,
}

enum Values<'a> {
    Text(Vec<Option<&'a str>>),
    Integer(Vec<Option<i64>>),
    Real(Vec<Option<f64>>),
}

impl Values<'_> {
    /// As a cell of the CSV.
    fn text(&self, row: usize) -> String {
        match self {
            Values::Text(values) => guarded(values[row].unwrap_or_default()).into_owned(),
            Values::Integer(values) => values[row].map(|v| v.to_string()).unwrap_or_default(),
            // Debug is the shortest form that reads back as the same number, with an exponent where it is shorter.
            Values::Real(values) => values[row].map(|v| format!("{v:?}")).unwrap_or_default(),
        }
    }
}

/// Collects columns over the same rows.
struct Table<'a> {
    rows: Vec<Outcome<'a>>,
    columns: Vec<Column<'a>>,
}

impl<'a> Table<'a> {
    fn text(&mut self, name: &str, value: impl Fn(Outcome<'a>) -> Option<&'a str>) {
        let values = Values::Text(self.rows.iter().map(|r| value(*r)).collect());
        self.columns.push(Column { name: name.into(), values });
    }

    fn integer(&mut self, name: &str, value: impl Fn(&'a ResultRecord) -> Option<i64>) {
        let values = Values::Integer(self.rows.iter().map(|row| row.ok().and_then(&value)).collect());
        self.columns.push(Column { name: name.into(), values });
    }

    fn real(&mut self, name: &str, value: impl Fn(&'a ResultRecord) -> Option<f64>) {
        let finite = |row: &Outcome<'a>| row.ok().and_then(&value).filter(|v| v.is_finite());
        let values = Values::Real(self.rows.iter().map(finite).collect());
        self.columns.push(Column { name: name.into(), values });
    }
}

fn columns(rows: Vec<Outcome<'_>>) -> Vec<Column<'_>> {
    let mut table = Table { rows, columns: Vec::new() };

    table.text("image", |row| Some(image(row)));
    table.text("state", |row| Some(if row.is_ok() { "succeeded" } else { "failed" }));
    table.integer("class", |r| Some(i64::from(r.class)));
    table.text("class_name", class_name);
    table.real("box_x", |r| r.bbox.map(|b| b.x));
    table.real("box_y", |r| r.bbox.map(|b| b.y));
    table.real("box_width", |r| r.bbox.map(|b| b.width));
    table.real("box_height", |r| r.bbox.map(|b| b.height));
    table.real("class_probability", |r| r.found.as_ref()?.probability);
    table.text("detection", |row| row.ok()?.found.as_ref()?.detection.as_ref().map(|d| d.label.as_str()));
    table.real("detection_score", |r| Some(r.found.as_ref()?.detection.as_ref()?.score));
    table.integer("seeds", |r| i64::try_from(r.seeds.len()).ok());
    table.integer("best_seed", |r| i64::try_from(r.best).ok());
    for metric in SeedMetric::ALL {
        let name = metric.as_str();
        table.real(name, move |r| metric.best_seed(r));
        table.real(&format!("{name}_seeds_mean"), move |r| metric.seeds_mean(r));
        table.real(&format!("{name}_seeds_min"), move |r| metric.seeds_min(r));
    }
    table.real("scale_x", |r| r.transform.as_ref().map(|t| t.scale[0]));
    table.real("scale_y", |r| r.transform.as_ref().map(|t| t.scale[1]));
    table.real("shift_x", |r| r.transform.as_ref().map(|t| t.shift[0]));
    table.real("shift_y", |r| r.transform.as_ref().map(|t| t.shift[1]));
    table.real("rotation", |r| r.transform.as_ref().map(|t| t.rotation));
    table.real("perspective_x", |r| r.transform.as_ref().map(|t| t.perspective[0]));
    table.real("perspective_y", |r| r.transform.as_ref().map(|t| t.perspective[1]));
    for (name, colour) in COLOURS {
        table.real(name, move |r| r.transform.as_ref()?.colour.iter().find(|(c, _)| *c == colour).map(|(_, v)| *v));
    }
    table.text("fine_tuned", |row| {
        row.ok()?.fine_tuned.as_ref().map(|tuned| match tuned {
            FineTuned::Kept { .. } => "kept",
            FineTuned::Dropped { .. } => "dropped",
        })
    });
    let tuned = |r: &ResultRecord| match &r.fine_tuned {
        Some(FineTuned::Kept { distances, .. }) => Some(distances.clone()),
        _ => None,
    };
    table.real("tuned_loss", move |r| tuned(r).map(|d| d.loss));
    table.real("tuned_l1", move |r| tuned(r).map(|d| d.l1));
    table.real("tuned_lpips", move |r| tuned(r).map(|d| d.lpips));
    table.integer("lane_steps", |r| i64::try_from(r.lane_steps).ok());
    table.real("seconds", |r| Some(r.seconds));
    table.text("job", |row| row.map_or_else(|failure| failure.job.as_ref(), |record| Some(&record.job)).map(JobId::as_str));
    table.text("failure_reason", |row| row.err().map(|failure| failure.reason.as_str()));
    table.text("failure_message", |row| row.err().map(|failure| failure.message.as_str()));
    table.columns
}

fn schema(columns: &[Column]) -> parquet::errors::Result<Arc<Type>> {
    let fields: parquet::errors::Result<Vec<_>> = columns
        .iter()
        .map(|column| {
            let (physical, logical) = match column.values {
                Values::Text(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
                Values::Integer(_) => (Physical::INT64, None),
                Values::Real(_) => (Physical::DOUBLE, None),
            };
            Type::primitive_type_builder(&column.name, physical)
                .with_repetition(Repetition::OPTIONAL)
                .with_logical_type(logical)
                .build()
                .map(Arc::new)
        })
        .collect();
    Ok(Arc::new(Type::group_type_builder("results").with_fields(fields?).build()?))
}

fn write_group(file: &mut SerializedFileWriter<Vec<u8>>, columns: &[Column]) -> parquet::errors::Result<()> {
    let mut group = file.next_row_group()?;
    for column in columns {
        let mut writer = group.next_column()?.expect("the schema has a field for each column");
        match &column.values {
            Values::Text(values) => {
                let values: Vec<_> = values.iter().map(|value| value.map(ByteArray::from)).collect();
                write_column::<ByteArrayType>(&mut writer, &values)
            }
            Values::Integer(values) => write_column::<Int64Type>(&mut writer, values),
            Values::Real(values) => write_column::<DoubleType>(&mut writer, values),
        }?;
        writer.close()?;
    }
    group.close()?;
    file.flush()?;
    Ok(())
}

fn write_column<T: DataType>(writer: &mut SerializedColumnWriter, values: &[Option<T::T>]) -> parquet::errors::Result<usize> {
    // Parquet's definition level: 1 if there is a value.
    let levels: Vec<i16> = values.iter().map(|value| value.is_some().into()).collect();
    let present: Vec<T::T> = values.iter().flatten().cloned().collect();
    writer.typed::<T>().write_batch(&present, Some(&levels), None)
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::{Field, Row};
    use proto::{Box2d, Failure, FailureReason, Transform};

    use super::*;
    use crate::summary::tests::{failure, record, seed};

    const HOSTILE: &str = "b/<i>,\"x\"\n=1+1.png";

    fn run() -> (Vec<ResultRecord>, Vec<Failure>) {
        let mut shirt = record(HOSTILE, 6, "shirt", 1, vec![seed(2.0, 0.5, 0.3), seed(1.0, 0.75, 1e-300)]);
        shirt.bbox = Some(Box2d { x: 1.0, y: 2.5, width: 3.0, height: 4.0 });
        shirt.transform = Some(Transform {
            scale: [1.25, 1.5],
            shift: [-0.125, 0.1 + 0.2],
            colour: vec![(ColourTransform::Brightness, 0.9)],
            ..Transform::IDENTITY
        });
        let odd = record("a.png", 0, "bag", 0, vec![seed(f64::NAN, 1.0, f64::INFINITY)]);
        (vec![shirt, odd], vec![failure("a/empty.png", FailureReason::BadImage, "cannot read \"a/empty.png\"\nempty")])
    }

    /// Both files, made of so many rows at a time.
    fn tables(results: &[ResultRecord], failures: &[Failure], at_a_time: usize) -> (Vec<u8>, Vec<u8>) {
        let mut rows: Vec<Outcome> = results.iter().map(Ok).chain(failures.iter().map(Err)).collect();
        rows.sort_by_key(|row| image(*row));
        let mut export = Export::default();
        let mut pieces: Vec<Piece> = rows.chunks(at_a_time).map(|rows| export.add(rows.to_vec())).collect();
        pieces.push(export.finish());
        pieces
            .into_iter()
            .fold((vec![], vec![]), |(csv, parquet), piece| ([csv, piece.csv].concat(), [parquet, piece.parquet].concat()))
    }

    fn csv_rows(bytes: &[u8]) -> Vec<Vec<String>> {
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(bytes);
        reader.records().map(|r| r.expect("CSV").iter().map(str::to_owned).collect()).collect()
    }

    #[test]
    fn a_name_or_message_that_looks_like_a_formula_is_none_in_the_csv() {
        let failure = failure("=HYPERLINK(\"http://evil.example\")/1.png", FailureReason::BadImage, "@SUM(1)");
        let odd = record("a.png", 0, "+bag", 0, vec![seed(-1.0, 1.0, 1.0)]);
        let cells: Vec<String> = csv_rows(&tables(&[odd], &[failure], 2).0).concat();
        for cell in ["'=HYPERLINK(\"http://evil.example\")/1.png", "'@SUM(1)", "'+bag", "-1.0"] {
            assert!(cells.iter().any(|there| there == cell), "{cell}: {cells:?}");
        }
    }

    fn text(field: &Field) -> String {
        match field {
            Field::Null => String::new(),
            Field::Str(value) => value.clone(),
            Field::Long(value) => value.to_string(),
            Field::Double(value) => format!("{value:?}"),
            other => panic!("no column has the type of {other}"),
        }
    }

    #[test]
    fn csv_has_every_number_and_odd_names_unchanged() {
        let (results, failures) = run();
        let rows = csv_rows(&tables(&results, &failures, 2).0);
        let get = |row: usize, name: &str| {
            let column = rows[0].iter().position(|n| n == name).unwrap_or_else(|| panic!("no column {name}"));
            rows[row][column].as_str()
        };
        assert_eq!(rows.len(), 4);
        assert_eq!([get(1, "image"), get(2, "image"), get(3, "image")], ["a.png", "a/empty.png", HOSTILE]);
        assert_eq!([get(1, "loss"), get(1, "lpips"), get(1, "l1"), get(1, "scale_x")], ["", "", "1.0", ""]);
        assert_eq!([get(2, "state"), get(2, "failure_reason")], ["failed", "bad_image"]);
        assert_eq!(get(2, "failure_message"), "cannot read \"a/empty.png\"\nempty");
        assert_eq!([get(3, "loss"), get(3, "loss_seeds_mean"), get(3, "loss_seeds_min")], ["1.0", "1.5", "1.0"]);
        assert_eq!([get(3, "l1"), get(3, "l1_seeds_mean"), get(3, "l1_seeds_min")], ["0.75", "0.625", "0.5"]);
        assert_eq!([get(3, "lpips"), get(3, "shift_y")], ["1e-300", "0.30000000000000004"]);
        assert_eq!([get(3, "box_y"), get(3, "brightness"), get(3, "gamma")], ["2.5", "0.9", ""]);
        assert_eq!([get(3, "class"), get(3, "class_name"), get(3, "best_seed")], ["6", "shirt", "1"]);
    }

    #[test]
    fn parquet_reads_back_as_the_same_table_as_csv() {
        let (results, failures) = run();
        let whole = csv_rows(&tables(&results, &failures, 10).0);
        for at_a_time in 1..4 {
            let (csv, bytes) = tables(&results, &failures, at_a_time);
            let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).expect("parquet");
            let rows: Vec<Row> = reader.get_row_iter(None).expect("rows").map(|r| r.expect("row")).collect();
            let names: Vec<String> = rows[0].get_column_iter().map(|(name, _)| name.clone()).collect();
            let values = rows.iter().map(|r| r.get_column_iter().map(|(_, field)| text(field)).collect());
            let table: Vec<Vec<String>> = std::iter::once(names).chain(values).collect();
            assert_eq!((&table, csv_rows(&csv)), (&whole, whole.clone()));
        }
    }

    #[test]
    fn a_run_without_images_has_a_header_and_no_rows() {
        let (csv, parquet) = tables(&[], &[], 1);
        assert_eq!(csv_rows(&csv).len(), 1);
        let reader = SerializedFileReader::new(bytes::Bytes::from(parquet)).expect("parquet");
        assert_eq!(reader.metadata().file_metadata().num_rows(), 0);
    }

    #[test]
    fn every_column_is_explained() {
        let document = include_str!("../../../docs/src/reference/results.md");
        for column in columns(vec![]) {
            let metric = column.name.trim_end_matches("_seeds_mean").trim_end_matches("_seeds_min");
            assert!(document.contains(&format!("`{metric}`")), "docs/src/reference/results.md does not explain {}", column.name);
        }
    }
}
