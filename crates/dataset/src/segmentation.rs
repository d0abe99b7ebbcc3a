//! COCO's outlines of objects: polygons, and run lengths plain or compressed. Pure.

use proto::Mask;
use serde::Deserialize;

/// Largest number of runs, or of the points' coordinates, in an outline; COCO's have hundreds.
const MOST: usize = 1 << 20;

#[derive(Deserialize)]
#[serde(untagged)]
enum Coco {
    Polygons(Vec<Vec<f64>>),
    Runs { counts: Vec<u32>, size: [u32; 2] },
    Compressed { counts: String, size: [u32; 2] },
}

/// Reads `segmentation` of an annotation. `None` if it is empty, so that only the box is known. `size`: width and height of the image, if
/// the file has them.
pub fn read(json: &str, size: Option<(f64, f64)>) -> Result<Option<Mask>, String> {
    if matches!(json, "null" | "[]" | "[[]]") {
        return Ok(None);
    }
    let coco = serde_json::from_str(json).map_err(|_| "the segmentation is neither polygons nor run lengths".to_owned())?;
    let (lengths, [height, width]) = match coco {
        Coco::Polygons(polygons) if polygons.iter().map(Vec::len).sum::<usize>() > MOST => {
            return Err(format!("the segmentation has more than {MOST} numbers"));
        }
        Coco::Polygons(polygons) => return whole(Mask::Polygons(polygons)),
        Coco::Runs { counts, size } => (counts, size),
        Coco::Compressed { counts, size } => (decompress(&counts)?, size),
    };
    if lengths.len() > MOST {
        return Err(format!("the segmentation has more than {MOST} runs"));
    }
    if size.is_some_and(|size| size != (f64::from(width), f64::from(height))) {
        return Err(format!("the segmentation is of an image of {width} x {height} pixels"));
    }
    whole(Mask::Runs { height, width, lengths })
}

fn whole(mask: Mask) -> Result<Option<Mask>, String> {
    match mask.problem() {
        Some(problem) => Err(format!("the segmentation {problem}")),
        None => Ok(Some(mask)),
    }
}

/// `rleFrString` of COCO's maskApi.c: five bits a letter, the sixth says that more follow; from the third on each length is the
/// difference to the one two before it.
fn decompress(text: &str) -> Result<Vec<u32>, String> {
    let bad = || "the segmentation's compressed counts are damaged".to_owned();
    let mut lengths: Vec<u32> = Vec::new();
    let mut letters = text.bytes();
    while let Some(first) = letters.next() {
        let (mut value, mut bits, mut letter) = (0i64, 0, first);
        loop {
            let six = letter.checked_sub(48).filter(|v| *v < 64 && bits < 60).ok_or_else(bad)?;
            value |= i64::from(six & 0x1f) << bits;
            bits += 5;
            if six & 0x20 == 0 {
                if six & 0x10 != 0 {
                    value |= -1 << bits;
                }
                break;
            }
            letter = letters.next().ok_or_else(bad)?;
        }
        if lengths.len() > 2 {
            value = value.checked_add(lengths[lengths.len() - 2].into()).ok_or_else(bad)?;
        }
        lengths.push(u32::try_from(value).map_err(|_| bad())?);
    }
    Ok(lengths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_run_lengths_are_those_of_pycocotools() {
        let golden = include_str!("../tests/golden/outlines.json");
        for case in serde_json::from_str::<Vec<serde_json::Value>>(golden).expect("JSON") {
            let (height, width) = (&case["height"], &case["width"]);
            let json = serde_json::json!({ "counts": case["compressed"], "size": [height, width] }).to_string();
            let Ok(Some(Mask::Runs { mut lengths, .. })) = read(&json, None) else { panic!("{}", case["name"]) };
            let mut expected: Vec<u32> = serde_json::from_value(case["runs"].clone()).expect("lengths");
            // An empty run at the end changes nothing.
            for lengths in [&mut lengths, &mut expected] {
                while lengths.last() == Some(&0) {
                    lengths.pop();
                }
            }
            assert_eq!(lengths, expected, "{}", case["name"]);
        }
    }

    #[test]
    fn wrong_outlines_are_refused_with_the_reason() {
        let refused = |json: &str| read(json, Some((4.0, 2.0))).expect_err("must be refused");
        assert!(refused("[[1, 2, 3, 4]]").contains("three finite points"));
        assert!(refused(r#"{"counts": [3, 4], "size": [2, 4]}"#).contains("do not fill"));
        assert!(refused(r#"{"counts": [3, 3], "size": [2, 3]}"#).contains("3 x 2 pixels"));
        assert!(refused(r#"{"counts": "o", "size": [2, 4]}"#).contains("damaged"));
        assert!(refused(r#""no outline""#).contains("neither polygons nor run lengths"));
        assert_eq!(read("[]", None), Ok(None));
        assert!(matches!(read("[[0, 0, 4, 0, 4, 2]]", None), Ok(Some(Mask::Polygons(p))) if p.len() == 1));
    }
}
