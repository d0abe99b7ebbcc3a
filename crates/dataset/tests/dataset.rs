//! Data sets in every layout, and damaged ones.

use std::path::Path;
use std::time::Instant;

use dataset::{ClassIndex, Dataset, DatasetError, Entry, Listing, read, read_coco};
use proto::{Box2d, ClassSource, Mask, MaskSource, Object};
use store::{Allowed, Store};
use tempfile::TempDir;

/// A folder with these files. `images` get a few bytes, which are not read here.
fn folder(images: &[&str], texts: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let files = images.iter().map(|name| (*name, "bytes")).chain(texts.iter().copied());
    for (name, content) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    dir
}

async fn open(dir: &Path, annotations: &str) -> Result<Dataset, DatasetError> {
    open_for(dir, annotations, &Object::default()).await
}

async fn open_for(dir: &Path, annotations: &str, object: &Object) -> Result<Dataset, DatasetError> {
    let store = Store::open(dir.to_str().unwrap()).await.unwrap();
    read(&store, annotations, object, &Allowed::default()).await
}

async fn refusal(dir: &TempDir, annotations: &str) -> String {
    open(dir.path(), annotations).await.expect_err("is refused").to_string()
}

/// An entry in a line: `key class x,y,width,height` or `image: reason: message`.
fn line(entry: &Entry) -> String {
    match entry {
        Entry::Image(image) => {
            assert!(!image.identity.is_empty());
            let bbox =
                image.bbox.as_deref().map_or("whole".into(), |b: &Box2d| format!("{},{},{},{}", b.x, b.y, b.width, b.height));
            format!("{} {} {bbox}", image.key, image.class_name)
        }
        Entry::Bad { image, reason, message, class_name } => {
            let class_name = class_name.as_ref().map_or(String::new(), |name| format!(" [{name}]"));
            format!("{image:?}{class_name}: {}: {message}", reason.as_str())
        }
    }
}

fn lines(dataset: &Dataset) -> Vec<String> {
    dataset.entries.iter().map(line).collect()
}

const CATEGORIES: &str = r#""categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]"#;

fn coco(images: &str, annotations: &str) -> String {
    format!(r#"{{"info": {{}}, "images": [{images}], "annotations": [{annotations}], {CATEGORIES}}}"#)
}

#[tokio::test]
async fn the_largest_object_of_a_coco_image_that_is_not_a_crowd_is_used() {
    let json = coco(
        r#"{"id": 7, "file_name": "b.jpg", "width": 100, "height": 50, "license": 3},
           {"id": 8, "file_name": "a.png", "width": 10, "height": 10},
           {"id": 9, "file_name": "c.jpg", "width": 10, "height": 10}"#,
        r#"{"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3]], "iscrowd": 0},
           {"id": 2, "image_id": 7, "category_id": 2, "bbox": [5.5, 6, 20, 10.25], "area": 1},
           {"id": 3, "image_id": 7, "category_id": 1, "bbox": [0, 0, 100, 50], "iscrowd": 1},
           {"id": 4, "image_id": 7, "category_id": 1, "bbox": [0, 0, 0, 50]},
           {"id": 5, "image_id": 8.0, "category_id": 1, "bbox": [-2, 0, 4, 4]},
           {"id": 6, "image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1], "iscrowd": 1},
           {"id": 7, "image_id": 77, "category_id": 1, "bbox": [0, 0, 1, 1]}"#,
    );
    let dir = folder(&["images/b.jpg", "a.png", "images/c.jpg"], &[("annotations.json", &json)]);
    let dataset = open(dir.path(), "auto").await.unwrap();
    assert_eq!(lines(&dataset), ["a.png cat -2,0,4,4", "images/b.jpg dog 5.5,6,20,10.25"]);
    assert_eq!(dataset.source, "annotations.json");
    assert_eq!(
        dataset.notes,
        ["1 of 3 images have no object (or only crowds) and are left out", "annotations of 1 unknown image ids were skipped"]
    );
}

#[tokio::test]
async fn the_archives_of_coco_are_read_as_they_are_unpacked() {
    let annotation = r#"{"image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5]}"#;
    let json = coco(r#"{"id": 1, "file_name": "000000000139.jpg", "width": 9, "height": 9}"#, annotation);
    let files = [
        ("annotations/captions_val2017.json", "{}"),
        ("annotations/instances_val2017.json", &json),
        ("annotations/instances_train2017.json", &json),
    ];
    let dir = folder(&["val2017/000000000139.jpg"], &files);
    let dataset = open(dir.path(), "auto").await.unwrap();
    assert_eq!(lines(&dataset), ["val2017/000000000139.jpg dog 0,0,5,5"]);
    assert_eq!(dataset.source, "annotations/instances_val2017.json");

    let dir = folder(&["000000000139.jpg"], &files);
    let error = refusal(&dir, "auto").await;
    assert!(error.contains("has several annotation files") && error.ends_with("--annotations"), "{error}");
    let dataset = open(dir.path(), "annotations/instances_train2017.json").await.unwrap();
    assert_eq!(lines(&dataset), ["000000000139.jpg dog 0,0,5,5"]);
}

#[tokio::test]
async fn a_bad_coco_entry_is_named_and_loses_no_other() {
    const BOX: &str = "[1, 2, 3, 4]";
    let rows = [
        ("good.jpg", BOX),
        ("../up.jpg", BOX),
        ("line\\nbreak.jpg", BOX),
        ("back\\\\slash.jpg", BOX),
        ("/etc/passwd.png", BOX),
        ("twice.jpg", BOX),
        ("twice.jpg", BOX),
        ("same_id_a.jpg", BOX),
        ("same_id_b.jpg", BOX),
        ("missing.jpg", BOX),
        ("category.jpg", BOX),
        ("zero.jpg", "[1, 2, 0, 5]"),
        ("negative.jpg", "[1, 2, 5, -5]"),
        ("nan.jpg", "[NaN, 2, 5, 5]"),
        ("inf.jpg", "[1, 2, 5, -Infinity]"),
        ("huge.jpg", "[1, 2, 5, 1e999]"),
        ("outside.jpg", "[64, 2, 5, 5]"),
        ("three.jpg", "[1, 2, 3]"),
        ("words.jpg", r#""NaN \" everywhere""#),
        ("good_too.jpg", BOX),
    ];
    let (mut images, mut annotations) = (Vec::new(), Vec::new());
    for (i, (name, bbox)) in rows.iter().enumerate() {
        let id = if *name == "same_id_b.jpg" { i - 1 } else { i };
        let category = if *name == "category.jpg" { 91 } else { 1 };
        images.push(format!(r#"{{"id": {id}, "file_name": "{name}", "width": 64, "height": 48}}"#));
        annotations.push(format!(r#"{{"image_id": {id}, "category_id": {category}, "bbox": {bbox}}}"#));
    }
    let odd = [r#"{"id": 100, "width": 5, "height": 5}"#, r#"{"id": 101, "file_name": 5}"#, r#"{"file_name": "no_id.jpg"}"#];
    images.extend(odd.map(String::from));
    annotations.extend([100, 101].map(|i| format!(r#"{{"image_id": {i}, "category_id": 1, "bbox": {BOX}}}"#)));
    let plain: Vec<&str> =
        rows.map(|(name, _)| name).into_iter().filter(|n| !n.contains(['/', '\\']) && *n != "missing.jpg").collect();
    let dir = folder(&plain, &[("annotations.json", &coco(&images.join(","), &annotations.join(",")))]);
    std::fs::write(dir.path().join("no_id.jpg"), "bytes").unwrap();
    let found = lines(&open(dir.path(), "auto").await.unwrap());
    let expected = [
        r#""../up.jpg" [cat]: bad_name: the image's name "../up.jpg" contains a '.' or '..' part"#,
        r#""/etc/passwd.png" [cat]: bad_name: the image's name "/etc/passwd.png" has an empty part (starts or ends with '/', or has '//')"#,
        r#""back\\slash.jpg" [cat]: bad_name: the image's name "back\\slash.jpg" contains a backslash"#,
        r#""category.jpg": unknown_class: the categories have no id 91"#,
        "good.jpg cat 1,2,3,4",
        "good_too.jpg cat 1,2,3,4",
        r#""huge.jpg" [cat]: bad_box: box (x 1, y 2, width 5, height inf) is not finite"#,
        r#""image id 100": bad_name: the image has no file_name"#,
        r#""image id 101": bad_name: the image has no file_name"#,
        r#""inf.jpg" [cat]: bad_box: box (x 1, y 2, width 5, height NaN) is not finite"#,
        r#""line\nbreak.jpg" [cat]: bad_name: the image's name "line\nbreak.jpg" contains a control character"#,
        r#""missing.jpg" [cat]: missing_image: the annotations list missing.jpg, but the data set has no such file"#,
        r#""nan.jpg" [cat]: bad_box: box (x NaN, y 2, width 5, height 5) is not finite"#,
        r#""negative.jpg" [cat]: bad_box: box (x 1, y 2, width 5, height -5) has no area"#,
        r#""no_id.jpg": bad_annotation: the image has no id"#,
        r#""outside.jpg" [cat]: bad_box: box (x 64, y 2, width 5, height 5) is outside of the image of 64 x 48 pixels"#,
        r#""same_id_a.jpg": bad_annotation: 2 images have the id 7"#,
        r#""same_id_b.jpg": bad_annotation: 2 images have the id 7"#,
        r#""three.jpg" [cat]: bad_box: bbox is [1, 2, 3], not four numbers"#,
        r#""twice.jpg": bad_annotation: twice.jpg is listed more than once"#,
        r#""words.jpg" [cat]: bad_box: bbox is "NaN \" everywhere", not four numbers"#,
        r#""zero.jpg" [cat]: bad_box: box (x 1, y 2, width 0, height 5) has no area"#,
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_category_that_is_listed_twice_names_no_class() {
    let json = r#"{"images": [{"id": 1, "file_name": "a.png"}],
                   "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}],
                   "categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]}"#;
    let dir = folder(&["a.png"], &[("annotations.json", json)]);
    let found = lines(&open(dir.path(), "auto").await.unwrap());
    assert_eq!(found, [r#""a.png": bad_annotation: category id 1 is listed more than once"#]);
}

#[tokio::test]
async fn a_file_that_gives_nothing_is_an_error_that_says_what_to_do() {
    let advice = "name COCO's instances file with --annotations, or use class folders or a manifest.csv";
    let image = r#"{"id": 1, "file_name": "a.png"}"#;
    let cases = [
        (r#"{"annotations": [], "categories": []}"#.into(), "images", advice),
        (coco("", ""), "images", advice),
        (r#"{"images": [{"id": 1, "file_name": "a.png"}]}"#.into(), "annotations", advice),
        (r#"{"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}"#.into(), "categories", advice),
        (coco(image, ""), "annotation for any of its images", "name another file with --annotations"),
    ];
    for (json, missing, advice) in cases {
        let expected = format!("annotations.json has no {missing}: {advice}");
        assert_eq!(refusal(&folder(&["a.png"], &[("annotations.json", &json)]), "auto").await, expected);
    }
    for json in ["not JSON", "{\"images\": [", "[1, 2]", "", "{\"images\": 3}"] {
        let error = refusal(&folder(&["a.png"], &[("annotations.json", json)]), "auto").await;
        assert!(error.starts_with("cannot read annotations.json as COCO annotations"), "{error}");
    }
    let dir = folder(&["a.png"], &[]);
    let error = refusal(&dir, "auto").await;
    assert!(error.contains("has images but no annotations and no class folders: put the images"), "{error}");
    assert!(refusal(&dir, "nowhere.json").await.starts_with("cannot read the annotations nowhere.json"));
    assert!(refusal(&dir, "a.png").await.starts_with("a.png is neither a .json nor a .csv file"));
    assert!(refusal(&folder(&[], &[("x/readme.txt", "")]), "auto").await.contains("has no .jpg, .jpeg or .png files"));
    assert!(refusal(&folder(&[], &[]), "auto").await.contains("has no files"));
}

#[tokio::test]
async fn class_folders_give_whole_images() {
    let images =
        ["n01/n01_2.JPEG", "n01/n01_1.png", "train/dog/x.jpg", "loose.jpg", ".hidden/a.png", "n01/._n01_1.png", "n01/x.gif"];
    let dataset = open(folder(&images, &[]).path(), "auto").await.unwrap();
    let expected = [
        r#""loose.jpg": bad_annotation: the image is not in a class folder"#,
        "n01/n01_1.png n01 whole",
        "n01/n01_2.JPEG n01 whole",
        "train/dog/x.jpg dog whole",
    ];
    assert_eq!(lines(&dataset), expected);
    assert_eq!(dataset.notes, ["1 files were skipped because they are neither .jpg, .jpeg nor .png"]);

    let dir = folder(&["cat/a.png"], &[("annotations.json", "broken")]);
    assert_eq!(lines(&open(dir.path(), "none").await.unwrap()), ["cat/a.png cat whole"]);
}

#[tokio::test]
async fn a_csv_manifest_gives_classes_and_boxes() {
    let csv = "\u{feff}Width,image,class,x,y,height\r\n\
               20,b.png,Ankle boot,1.5,2,10\r\n\
               ,\"a, b.png\",\"T-shirt/top\",,,\r\n\
               5,word.png,bag,one,2,5\r\n\
               0,zero.png,bag,1,2,5\r\n\
               nan,nan.png,bag,1,2,5\r\n\
               ,half.png,bag,1,2,\r\n\
               short.png\r\n\
               9,../c.png,bag,1,2,3\r\n\
               9,gone.png,bag,1,2,3\r\n\
               ,twice.png,bag,,,\r\n\
               ,twice.png,bag,,,\r\n\
               ,noclass.png,,,,\r\n";
    let images = ["b.png", "images/a, b.png", "word.png", "zero.png", "nan.png", "half.png", "twice.png", "noclass.png"];
    let dataset = open(folder(&images, &[("manifest.csv", csv)]).path(), "auto").await.unwrap();
    let expected = [
        r#""../c.png" [bag]: bad_name: the image's name "../c.png" contains a '.' or '..' part"#,
        "b.png Ankle boot 1.5,2,20,10",
        r#""gone.png" [bag]: missing_image: the annotations list gone.png, but the data set has no such file"#,
        r#""half.png" [bag]: bad_box: the box's width is "", not a number"#,
        "images/a, b.png T-shirt/top whole",
        r#""nan.png" [bag]: bad_box: box (x 1, y 2, width NaN, height 5) is not finite"#,
        r#""noclass.png": bad_annotation: the class is empty"#,
        r#""row 8": bad_name: the image has no name"#,
        r#""twice.png": bad_annotation: twice.png is listed more than once"#,
        r#""word.png" [bag]: bad_box: the box's x is "one", not a number"#,
        r#""zero.png" [bag]: bad_box: box (x 1, y 2, width 0, height 5) has no area"#,
    ];
    assert_eq!(lines(&dataset), expected);
    for (csv, problem) in [
        ("image;class\na.png;b\n", "has no columns image and class"),
        ("image,class,x,y\na.png,b,1,2\n", "has only some of the columns"),
        ("image,class\n", "lists no images"),
        ("", "has no columns image and class"),
    ] {
        let error = refusal(&folder(&["a.png"], &[("manifest.csv", csv)]), "auto").await;
        assert!(error.starts_with("manifest.csv ") && error.contains(problem), "{error}");
    }
}

#[tokio::test]
async fn annotations_may_lie_outside_of_the_data_set() {
    let json = coco(r#"{"id": 1, "file_name": "a.png"}"#, r#"{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}"#);
    let dir = folder(&["a.png"], &[("annotations.json", "broken")]);
    let elsewhere = folder(&[], &[("mine.json", &json)]);
    let path = elsewhere.path().join("mine.json");
    let dataset = open(dir.path(), path.to_str().unwrap()).await.unwrap();
    assert_eq!(lines(&dataset), ["a.png cat 0,0,1,1"]);
}

#[tokio::test]
async fn the_bundled_samples_are_a_data_set() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples");
    let dataset = open(&samples, "auto").await.unwrap();
    assert_eq!((dataset.entries.len(), dataset.notes.len()), (64, 0));
    assert!(dataset.entries.iter().all(|e| matches!(e, Entry::Image(image) if image.bbox.is_some())));
}

fn masks_of(dataset: &Dataset) -> Vec<Option<Mask>> {
    let mask = |entry: &Entry| match entry {
        Entry::Image(image) => image.mask.as_deref().cloned(),
        Entry::Bad { .. } => None,
    };
    dataset.entries.iter().map(mask).collect()
}

#[tokio::test]
async fn outlines_are_read_on_request_and_a_bad_one_makes_only_its_own_image_bad() {
    let outlined = |image: u32, segmentation: &str| {
        format!(r#"{{"image_id": {image}, "category_id": 2, "bbox": [1, 1, 4, 4], "segmentation": {segmentation}}}"#)
    };
    let images: Vec<String> =
        (1..5).map(|i| format!(r#"{{"id": {i}, "file_name": "{i}.jpg", "width": 10, "height": 8}}"#)).collect();
    let annotations = [
        outlined(1, "[[1, 1, 5, 1, 5, 5]]"),
        outlined(2, r#"{"counts": [11, 4, 65], "size": [8, 10]}"#),
        outlined(3, "[[1, 1]]"),
        outlined(4, "[]"),
    ];
    let json = coco(&images.join(","), &annotations.join(","));
    let dir = folder(&["1.jpg", "2.jpg", "3.jpg", "4.jpg"], &[("annotations.json", &json)]);
    let outline = Object { mask: MaskSource::Outline, ..Object::default() };
    let dataset = open_for(dir.path(), "auto", &outline).await.unwrap();
    let polygons = Mask::Polygons(vec![vec![1.0, 1.0, 5.0, 1.0, 5.0, 5.0]]);
    let runs = Mask::Runs { height: 8, width: 10, lengths: vec![11, 4, 65] };
    assert_eq!(masks_of(&dataset), [Some(polygons), Some(runs), None, None]);
    let bad = "\"3.jpg\" [dog]: bad_mask: the segmentation has a polygon that is not at least three finite points";
    assert_eq!(lines(&dataset)[2..], [bad, "4.jpg dog 1,1,4,4"]);
    let boxes = open(dir.path(), "auto").await.unwrap();
    assert!(masks_of(&boxes).iter().all(Option::is_none) && lines(&boxes).iter().all(|line| line.ends_with("dog 1,1,4,4")));
}

#[tokio::test]
async fn mask_files_belong_to_their_images_and_are_not_images_themselves() {
    let dir = folder(&["cat/a.jpg", "cat/b.jpg", "masks/a.png", "masks/c.png"], &[]);
    let files = Object { mask: MaskSource::File { pattern: "masks/{stem}.png".into() }, ..Object::default() };
    let dataset = open_for(dir.path(), "auto", &files).await.unwrap();
    assert!(matches!(&masks_of(&dataset)[0], Some(Mask::File { key, identity }) if key == "masks/a.png" && !identity.is_empty()));
    let missing = "\"cat/b.jpg\" [cat]: bad_mask: the data set has no mask masks/b.png";
    assert_eq!(lines(&dataset), ["cat/a.jpg cat whole", missing]);
    let beside = Object { mask: MaskSource::File { pattern: "{path}.mask.png".into() }, ..Object::default() };
    let dir = folder(&["cat/a.jpg", "cat/a.mask.png"], &[]);
    assert_eq!(lines(&open_for(dir.path(), "auto", &beside).await.unwrap()), ["cat/a.jpg cat whole"]);
}

#[tokio::test]
async fn images_without_class_and_object_are_used_where_neither_is_requested() {
    let found = Object { class: ClassSource::Classifier, mask: MaskSource::DetectorBox };
    let dir = folder(&["a.jpg", "cat/b.jpg"], &[]);
    assert_eq!(lines(&open_for(dir.path(), "auto", &found).await.unwrap()), ["a.jpg  whole", "cat/b.jpg cat whole"]);
    let images = r#"{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}"#;
    let json = coco(images, r#"{"image_id": 2, "category_id": 1, "bbox": [0, 0, 0, 0]}"#);
    let dir = folder(&["a.jpg", "b.jpg"], &[("annotations.json", &json)]);
    assert_eq!(lines(&open_for(dir.path(), "auto", &found).await.unwrap()), ["a.jpg  whole", "b.jpg  whole"]);
    let boxed = Object { mask: MaskSource::Box, ..found };
    assert_eq!(open_for(dir.path(), "auto", &boxed).await.unwrap().entries.len(), 1, "an image without a box");
}

/// As large as COCO's val2017. The time is printed, not tested.
#[test]
fn a_data_set_of_the_size_of_coco_is_read_in_one_go() {
    let outline = vec!["123.45"; 60].join(",");
    let images: Vec<String> = (0..5_000)
        .map(|i| format!(r#"{{"license": 3, "file_name": "{i:012}.jpg", "coco_url": "http://x/{i}.jpg", "height": 427, "width": 640, "id": {i}}}"#))
        .collect();
    let annotations: Vec<String> = (0..36_781)
        .map(|i| {
            let (image, size) = (i % 5_000, 1 + i / 5_000);
            format!(r#"{{"segmentation": [[{outline}]], "area": 702.1, "iscrowd": 0, "image_id": {image}, "bbox": [4.7, 3.1, {size}, 9], "category_id": 2, "id": {i}}}"#)
        })
        .collect();
    let json = coco(&images.join(","), &annotations.join(","));
    drop((images, annotations));
    let listing: Listing = (0..5_000).map(|i| (format!("val2017/{i:012}.jpg"), "identity".into())).collect();
    let start = Instant::now();
    let dataset = read_coco("annotations/instances_val2017.json", json.as_bytes(), &listing, &Object::default()).unwrap();
    println!("{} MB of JSON in {:.2} s", json.len() / 1_000_000, start.elapsed().as_secs_f64());
    assert_eq!(dataset.entries.len(), 5_000);
    assert_eq!(line(&dataset.entries[0]), "val2017/000000000000.jpg dog 4.7,3.1,8,9");
}

#[test]
fn a_class_is_found_by_its_name_or_one_that_differs_little() {
    let classes = ClassIndex::new(&["T-shirt/top", "Ankle boot", "crane", "crane", "Bag", "bag", "hot-dog"]);
    assert_eq!(["Ankle boot", "ankle_boot", "ANKLE-BOOT "].map(|name| classes.find(name)), [Some(1); 3]);
    assert_eq!(["t shirt/top", "hot dog", "Bag", "bag"].map(|name| classes.find(name)), [0, 6, 4, 5].map(Some));
    // The first two could be either.
    assert_eq!(["BAG", "crane", "hotdog", ""].map(|name| classes.find(name)), [None; 4]);
}
