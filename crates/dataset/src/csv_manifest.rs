//! Reads a CSV file with the columns `image,class` and, if wanted, `x,y,width,height` (all four empty: the whole image). Pure.

use std::collections::HashMap;

use proto::{Box2d, FailureReason, Object};

use crate::entries::{Annotated, Entries, Listing, Problem, check_box, needs_box, needs_class};
use crate::{Dataset, DatasetError, SharedStr, unusable};

pub fn read_csv(file: &str, bytes: &[u8], listing: &Listing, wanted: &Object) -> Result<Dataset, DatasetError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let failed = |source| DatasetError::Csv { file: file.to_owned(), source };
    let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(bytes);
    let header = reader.byte_headers().map_err(failed)?.clone();
    let column = |name: &str| header.iter().position(|h| h.eq_ignore_ascii_case(name.as_bytes()));
    let advice = "make its first line image,class or image,class,x,y,width,height";
    let class = column("class");
    let (Some(image), true) = (column("image"), class.is_some() || !needs_class(wanted)) else {
        return Err(unusable(file, "has no columns image and class", advice));
    };
    let bbox = match ["x", "y", "width", "height"].map(column) {
        [Some(x), Some(y), Some(width), Some(height)] => Some([x, y, width, height]),
        [None, None, None, None] => None,
        _ => return Err(unusable(file, "has only some of the columns x, y, width and height", advice)),
    };
    let mut entries = Entries::new(file, listing, wanted);
    let mut class_names: HashMap<String, SharedStr> = HashMap::new();
    for (i, record) in reader.byte_records().enumerate() {
        let record = record.map_err(failed)?;
        let field = |i: usize| String::from_utf8_lossy(record.get(i).unwrap_or_default()).into_owned();
        let class_name = class.map(field).unwrap_or_default();
        let class_name = class_names.entry(class_name).or_insert_with_key(|name| name.as_str().into()).clone();
        let bbox = bbox.filter(|_| needs_box(wanted)).map(|columns| columns.map(field));
        let bbox = bbox.filter(|values| values.iter().any(|v| !v.is_empty()));
        let object = if class_name.is_empty() && needs_class(wanted) {
            Err(Problem::new(FailureReason::BadAnnotation, "the class is empty"))
        } else {
            bbox.map(|values| read_box(&values).map_err(|problem| problem.of_class(class_name.clone())))
                .transpose()
                .map(|bbox| Annotated { class_name: class_name.clone(), bbox, mask: None })
        };
        match field(image) {
            // The header is row 1, as in a spreadsheet.
            name if name.is_empty() => entries.add_nameless(format!("row {}", i + 2), "the image has no name"),
            name => entries.add(&name, object),
        }
    }
    if entries.is_empty() {
        return Err(unusable(file, "lists no images", advice));
    }
    Ok(entries.finish(file, Vec::new()))
}

fn read_box(values: &[String; 4]) -> Result<Box2d, Problem> {
    let number = |i: usize| {
        values[i].parse::<f64>().map_err(|_| {
            let name = ["x", "y", "width", "height"][i];
            Problem::new(FailureReason::BadBox, format!("the box's {name} is {:?}, not a number", values[i]))
        })
    };
    check_box(Box2d { x: number(0)?, y: number(1)?, width: number(2)?, height: number(3)? }, None)
}
