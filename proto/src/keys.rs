//! Names of objects in the store of a run.
//!
//! ```text
//! run.json                              what the run is: data set, model, parameters
//! images/<image>/result.json            commit marker (written last)
//! images/<image>/projection.safetensors z, c, transform and losses of all seeds
//! images/<image>/target.png             the image in the generator's size
//! images/<image>/transformed.png        the target under the transform that was found
//! images/<image>/generated.png          the best projection
//! images/<image>/inverted.png           the same, back in the target's frame
//! images/<image>/history.json           loss curves
//! images/<image>/failure.json           why there is no result
//! checkpoints/<image>.checkpoint        state of an unfinished projection
//! results.parquet results.csv summary.json report.html
//! ```
//!
//! `<image>` is the image's key in the data set with every byte but letters, digits, `.`, `_`, `-` and `/` written as `%XX`.

/// What the run is.
pub const RUN: &str = "run.json";
/// Prefix of everything that belongs to images.
pub const IMAGES: &str = "images/";
/// Prefix of the checkpoints.
pub const CHECKPOINTS: &str = "checkpoints/";

/// An object of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// Commit marker.
    Result,
    /// z, c, transform and losses of all seeds.
    Projection,
    /// The image in the generator's size.
    Target,
    /// The target under the transform that was found.
    Transformed,
    /// The best projection.
    Generated,
    /// The best projection, back in the target's frame.
    Inverted,
    /// Loss curves.
    History,
    /// Why there is no result.
    Failure,
}

impl Item {
    const ALL: [Item; 8] = [
        Item::Result,
        Item::Projection,
        Item::Target,
        Item::Transformed,
        Item::Generated,
        Item::Inverted,
        Item::History,
        Item::Failure,
    ];

    /// Last part of the key.
    pub fn file(self) -> &'static str {
        match self {
            Item::Result => "result.json",
            Item::Projection => "projection.safetensors",
            Item::Target => "target.png",
            Item::Transformed => "transformed.png",
            Item::Generated => "generated.png",
            Item::Inverted => "inverted.png",
            Item::History => "history.json",
            Item::Failure => "failure.json",
        }
    }
}

/// Key of an object of `image`.
pub fn item(image: &str, item: Item) -> String {
    format!("{IMAGES}{}/{}", escape(image), item.file())
}

/// Key of the checkpoint of `image`.
pub fn checkpoint(image: &str) -> String {
    format!("{CHECKPOINTS}{}.checkpoint", escape(image))
}

/// Image and object of a key made by `item`.
pub fn parse_item(key: &str) -> Option<(String, Item)> {
    let (image, file) = key.strip_prefix(IMAGES)?.rsplit_once('/')?;
    let item = Item::ALL.into_iter().find(|i| i.file() == file)?;
    Some((unescape(image)?, item))
}

/// Whether `key` can name an image: not empty, no control characters, no absolute path, no `.` or `..` or empty segment.
pub fn check_image(key: &str) -> Result<(), &'static str> {
    if key.is_empty() {
        return Err("is empty");
    }
    if key.len() > 512 {
        return Err("is longer than 512 bytes");
    }
    if key.chars().any(char::is_control) {
        return Err("contains a control character");
    }
    if key.contains('\\') {
        return Err("contains a backslash");
    }
    if key.split('/').any(|s| s.is_empty()) {
        return Err("has an empty part (starts or ends with '/', or has '//')");
    }
    if key.split('/').any(|s| s == "." || s == "..") {
        return Err("contains a '.' or '..' part");
    }
    Ok(())
}

fn escape(image: &str) -> String {
    image.split('/').map(escape_segment).collect::<Vec<_>>().join("/")
}

fn escape_segment(segment: &str) -> String {
    if segment.is_empty() {
        return "%".into();
    }
    let all_dots = segment.bytes().all(|b| b == b'.');
    let mut out = String::with_capacity(segment.len());
    for b in segment.bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-') || (b == b'.' && !all_dots) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

fn unescape(escaped: &str) -> Option<String> {
    let segments: Option<Vec<String>> = escaped.split('/').map(unescape_segment).collect();
    Some(segments?.join("/"))
}

fn unescape_segment(segment: &str) -> Option<String> {
    if segment == "%" {
        return Some(String::new());
    }
    let mut out = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            let digits = std::str::from_utf8(&digits).ok()?;
            out.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_in_the_run_and_can_be_read_back() {
        for image in ["a.png", "class 1/b.jpg", "../../etc/passwd", "/x", "a//b", "ümlaut\n.png", "..", "a/./b", "%41", ""] {
            for i in Item::ALL {
                let key = item(image, i);
                assert!(key.split('/').all(|s| !s.is_empty() && s != "." && s != ".."), "{key}");
                assert!(key.starts_with(IMAGES) && key.bytes().all(|b| (0x21..0x7f).contains(&b)), "{key}");
                assert_eq!(parse_item(&key), Some((image.to_owned(), i)));
            }
        }
    }

    #[test]
    fn names_that_are_no_keys_are_named() {
        assert!(check_image("a/b.png").is_ok());
        for bad in ["", "a/../b", "/a", "a/", "a\nb", "a\\b", "."] {
            assert!(check_image(bad).is_err(), "{bad:?}");
        }
    }
}
