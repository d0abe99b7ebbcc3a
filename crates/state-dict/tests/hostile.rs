//! What must not be read is refused, with the file and the key, opcode or global named; and nothing panics on the way.

use std::io::{Cursor, Write};
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use state_dict::{Error, MAX_BYTES, StateDict, parse, read};
use zip::CompressionMethod::{Deflated, Stored};
use zip::write::{SimpleFileOptions, ZipWriter};

/// The fixtures that can be read, and those that cannot.
const GOOD: [&str; 7] = [
    "deflated.npz",
    "nested.legacy.pth",
    "nested.zip.pth",
    "stored.npz",
    "weights.legacy.pth",
    "weights.safetensors",
    "weights.zip.pth",
];
const BAD: [&str; 5] = ["big-endian.npz", "module.zip.pth", "nan.legacy.pth", "nan.zip.pth", "objects.npz"];

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

/// The message of a refusal, which names the file.
fn refusal(bytes: &[u8]) -> String {
    let message = parse("evil.pth", bytes).unwrap_err().to_string();
    assert!(message.contains("evil.pth"), "{message}");
    message
}

#[track_caller]
fn assert_refused(bytes: &[u8], parts: &[&str]) {
    let message = refusal(bytes);
    assert!(parts.iter().all(|part| message.contains(part)), "{message}: should say {parts:?}");
}

// A pickle, written by hand.

const ORDERED_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";

fn pickle(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02", body, b"."].concat()
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn int(value: i64) -> Vec<u8> {
    [&b"\x8a\x08"[..], &value.to_le_bytes()].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &items.concat()[..], b"t"].concat()
}

fn ints(values: &[i64]) -> Vec<u8> {
    tuple(&values.iter().copied().map(int).collect::<Vec<_>>())
}

fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<u8> = entries.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"}(", &entries[..], b"u"].concat()
}

fn storage(kind: &str, key: &str, numel: i64) -> Vec<u8> {
    let kind = format!("ctorch\n{kind}\n").into_bytes();
    [tuple(&[text("storage"), kind, text(key), text("cpu"), int(numel)]), b"Q".to_vec()].concat()
}

fn tensor(storage: Vec<u8>, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    rebuild(&[storage, int(offset), ints(shape), ints(strides), b"\x89".to_vec(), ORDERED_DICT.to_vec()])
}

fn rebuild(arguments: &[Vec<u8>]) -> Vec<u8> {
    [b"ctorch._utils\n_rebuild_tensor_v2\n", &tuple(arguments)[..], b"R"].concat()
}

/// All of a storage of four floats under the key "0".
fn weight() -> Vec<u8> {
    tensor(storage("FloatStorage", "0", 4), 0, &[4], &[1])
}

/// The old format without a storage.
fn alone(object: &[u8]) -> Vec<u8> {
    legacy_with(object, &[])
}

/// Floats 0..4 under the key "0", in the old format.
fn legacy(object: &[u8]) -> Vec<u8> {
    legacy_with(object, &[("0", 4, &floats(4))])
}

fn floats(n: usize) -> Vec<u8> {
    (0..n).flat_map(|x| (x as f32).to_le_bytes()).collect()
}

fn legacy_with(object: &[u8], storages: &[(&str, i64, &[u8])]) -> Vec<u8> {
    let machine = dict(&[("little_endian", b"\x88".to_vec())]);
    let keys: Vec<u8> = storages.iter().flat_map(|(key, ..)| text(key)).collect();
    let data: Vec<u8> = storages.iter().flat_map(|(_, numel, data)| [&numel.to_le_bytes(), *data].concat()).collect();
    let magic = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    [pickle(magic), pickle(b"M\xe9\x03"), pickle(&machine), pickle(object), pickle(&[b"](", &keys[..], b"e"].concat()), data]
        .concat()
}

fn zip(method: zip::CompressionMethod, entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Floats 0..4 under the key "0", in the zip.
fn torch_zip(object: &[u8]) -> Vec<u8> {
    zip(Stored, &[("a/data.pkl", &pickle(object)), ("a/data/0", &floats(4))])
}

/// One tensor "w" over the storage of four floats.
fn one(shape: &[i64], strides: &[i64], offset: i64) -> Vec<u8> {
    legacy(&dict(&[("w", tensor(storage("FloatStorage", "0", 4), offset, shape, strides))]))
}

/// An npz of one member "w".
fn one_member(npy: &[u8]) -> Vec<u8> {
    zip(Deflated, &[("w.npy", npy)])
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[test]
fn the_pickles_of_these_tests_are_read_when_nothing_is_wrong_with_them() {
    let read = parse("good.pth", &one(&[2, 2], &[1, 2], 0)).unwrap();
    assert_eq!(read["w"].floats().unwrap(), [0.0, 2.0, 1.0, 3.0]);
    let object = dict(&[("w", tensor(storage("FloatStorage", "0", 4), 1, &[3], &[1]))]);
    let read = parse("good.pth", &torch_zip(&object)).unwrap();
    assert_eq!(read["w"].floats().unwrap(), [1.0, 2.0, 3.0]);
    let read = parse("good.npz", &one_member(&npy("<f4", "(2,)", &floats(2)))).unwrap();
    assert_eq!(read["w"].floats().unwrap(), [0.0, 1.0]);
}

#[test]
fn a_pickle_that_would_run_code_is_refused_with_the_global_named() {
    let calls = [
        ("os", "system", tuple(&[text("touch /tmp/owned")])),
        ("posix", "system", tuple(&[text("true")])),
        ("nt", "system", tuple(&[text("true")])),
        ("builtins", "eval", tuple(&[text("1")])),
        ("__builtin__", "eval", tuple(&[text("1")])),
        ("builtins", "getattr", tuple(&[text("a"), text("b")])),
        ("subprocess", "Popen", tuple(&[text("true")])),
        ("torch", "load", tuple(&[text("other.pth")])),
        ("torch.storage", "_load_from_bytes", tuple(&[text("x")])),
        ("torch._utils", "_rebuild_device_tensor_from_numpy", tuple(&[])),
        ("collections", "OrderedDict.fromkeys", tuple(&[])),
        ("torch", "OrderedDict", tuple(&[])),
        ("", "", tuple(&[])),
    ];
    for (module, name, arguments) in calls {
        let call = [format!("c{module}\n{name}\n").as_bytes(), &arguments, b"R"].concat();
        let object = dict(&[("w", weight()), ("x", call)]);
        let global = format!("the global \"{module}.{name}\"");
        assert_refused(&legacy(&object), &[&global, "save its state_dict"]);
        assert_refused(&torch_zip(&object), &[&global]);
        // In the other pickles of the old format as well.
        let other = [&fixture("weights.legacy.pth")[..15], &pickle(&object)].concat();
        assert_refused(&other, &[&global]);
    }
}

#[test]
fn a_whole_module_is_refused_with_its_class_named() {
    assert_refused(&fixture("module.zip.pth"), &["torch.nn.modules.linear.Linear", "state_dict"]);
}

#[test]
fn every_opcode_outside_the_language_is_refused_by_name() {
    let accepted = b".(N\x88\x89KMJ\x8aGXUT])t\x85\x86\x87}aesucRbQqrhj";
    for opcode in (0..=u8::MAX).filter(|opcode| !accepted.contains(opcode)) {
        let message = refusal(&legacy(&[&b"}}"[..], &[opcode], b"os\nsystem\n0000"].concat()));
        assert!(message.contains("refused the opcode") && message.contains(&format!("(0x{opcode:02x})")), "{message}");
    }
    let letters = [(b'i', "INST"), (b'o', "OBJ"), (b'P', "PERSID"), (b'0', "POP"), (b'2', "DUP"), (b'B', "BINBYTES")];
    let others =
        [(0x81, "NEWOBJ"), (0x92, "NEWOBJ_EX"), (0x93, "STACK_GLOBAL"), (0x82, "EXT1"), (0x8f, "EMPTY_SET"), (0x95, "FRAME")];
    for (opcode, name) in letters.into_iter().chain(others) {
        assert_refused(&legacy(&[&b"}"[..], &[opcode]].concat()), &[&format!("the opcode {name} (")]);
    }
}

#[test]
fn calls_of_what_may_be_named_take_only_what_torch_writes() {
    let id = |items: &[Vec<u8>]| [&tuple(items)[..], b"Q"].concat();
    let floats = || storage("FloatStorage", "0", 4);
    let (no, hooks) = (|| b"\x89".to_vec(), || ORDERED_DICT.to_vec());
    let cases: [(Vec<u8>, &str); 16] = [
        (b"ctorch\nFloatStorage\n)R".to_vec(), "a call of Storage(F32)"),
        (b"X\x01\x00\x00\x00a)R".to_vec(), "REDUCE of a value that is not a global"),
        (b"ccollections\nOrderedDict\n]R".to_vec(), "REDUCE without a tuple"),
        (b"ccollections\nOrderedDict\nK\x01\x85R".to_vec(), "a call of OrderedDict"),
        (b"ccollections\nOrderedDict\n]K\x01a\x85R".to_vec(), "an OrderedDict whose items are not pairs"),
        (b"ctorch\nSize\nK\x01\x85R".to_vec(), "a call of Size"),
        (b"ctorch._utils\n_rebuild_parameter\n}\x88}\x87R".to_vec(), "a call of RebuildParameter"),
        (b"ctorch._utils\n_rebuild_tensor\n)R".to_vec(), "a call of RebuildTensor "),
        (id(&[text("module"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu"), int(4)]), "persistent id"),
        (id(&[text("storage"), b"ctorch\nSize\n".to_vec(), text("0"), text("cpu"), int(4)]), "persistent id"),
        ([&text("0")[..], b"Q"].concat(), "persistent id"),
        (rebuild(&[floats(), int(0), ints(&[4]), ints(&[]), no(), hooks()]), "one stride for each size"),
        (rebuild(&[floats(), int(0), text("4"), ints(&[1]), no(), hooks()]), "not a tuple of at most"),
        (rebuild(&[floats(), int(0), ints(&[1; 33]), ints(&[1; 33]), no(), hooks()]), "not a tuple of at most"),
        (rebuild(&[floats(), text("0"), ints(&[4]), ints(&[1]), no(), hooks()]), "not an integer"),
        (rebuild(&[floats(), int(0), ints(&[4]), ints(&[1]), no(), hooks(), b"}".to_vec()]), "a call of RebuildTensorV2"),
    ];
    for (value, expected) in cases {
        assert_refused(&legacy(&dict(&[("w", value)])), &[expected, "pickle, at its byte"]);
    }
}

#[test]
fn attributes_are_set_on_nothing_but_an_ordered_dict_and_only_its_metadata() {
    let ordered = ORDERED_DICT;
    let metadata = dict(&[("_metadata", ordered.to_vec())]);
    let good = [ordered, &text("w"), &weight(), b"s", &metadata, b"b"].concat();
    assert!(parse("good.pth", &legacy(&good)).unwrap().contains_key("w"));
    let others = [
        [&weight()[..], &metadata, b"b"].concat(),
        [&b"}"[..], &metadata, b"b"].concat(),
        [&b"]"[..], &metadata, b"b"].concat(),
        [&b"ccollections\nOrderedDict\n"[..], &metadata, b"b"].concat(),
        [ordered, &dict(&[("__class__", text("x"))]), b"b"].concat(),
        [ordered, &dict(&[("_metadata", text("x")), ("__reduce__", text("x"))]), b"b"].concat(),
        [ordered, b"}b"].concat(),
        [ordered, &text("x"), b"b"].concat(),
    ];
    for object in others {
        assert_refused(&legacy(&object), &["BUILD"]);
    }
}

#[test]
fn a_pickle_takes_nothing_that_is_not_there() {
    let short: [&[u8]; 17] = [
        b"R", b"s", b"}s", b"t", b"u", b"e", b"\x85", b"(\x85", b"}(s", b"q\x00", b"(q\x00t", b"h\x00", b"", b"}}", b"}(",
        b"}K\x01s", b"cos",
    ];
    let misplaced: [&[u8]; 6] = [b"}(K\x01u", b"}q\x00h\x01", b"K\x01K\x01a", b"K\x01K\x01K\x01s", b"}]K\x01s", b"}NK\x01s"];
    let cut: [&[u8]; 5] = [b"\x8a\xff", b"j\xff\xff\xff\xff", b"X\xff\xff\xff\xff", b"X\x01\x00\x00\x00\xff", b"U\xffa"];
    for body in short.into_iter().chain(misplaced).chain(cut) {
        refusal(&legacy(body));
    }
    for body in [&b"N(N\x86t"[..], b"}(\x85u", b"}N(s", b"R", b"}K\x01(q\x00u"] {
        assert_refused(&legacy(body), &["needs a value, and the stack is empty"]);
    }
    for body in [&b"}}"[..], b"}(", b""] {
        assert_refused(&legacy(body), &["does not end with exactly one value"]);
    }
}

#[test]
fn a_pickle_of_another_protocol_is_refused() {
    let mut four = legacy(b"}");
    let at = 15 + pickle(b"M\xe9\x03").len() + pickle(&dict(&[("little_endian", b"\x88".to_vec())])).len();
    assert_eq!(four[at..][..3], *b"\x80\x02}");
    four[at + 1] = 4;
    assert_refused(&four, &["protocol"]);
}

#[test]
fn deep_nesting_and_loops_end_in_a_refusal_not_in_the_stack() {
    let million = 1_000_000;
    let lists = [vec![b']'; million], vec![b'a'; million - 1]].concat();
    assert_refused(&alone(&lists), &["nested deeper than 32"]);
    let tuples = [&b"]"[..], &vec![0x85; million]].concat();
    assert_refused(&alone(&tuples), &["nested deeper than 32"]);
    let marks = vec![b'('; million];
    assert_refused(&alone(&marks), &["damaged"]);
    let nested = |depth| legacy(&[&b"]".repeat(depth)[..], &weight(), &b"a".repeat(depth)].concat());
    assert_eq!(parse("good.pth", &nested(32)).unwrap().len(), 1);
    assert_refused(&nested(33), &["nested deeper than 32"]);
    let itself = [&b"}q\x00"[..], &text("x"), b"h\x00s"].concat();
    assert_refused(&alone(&itself), &["nested deeper than 32", "x.x.x"]);
    let list = b"]q\x00h\x00a";
    assert_refused(&alone(list), &["nested deeper than 32"]);
}

#[test]
fn what_the_memo_multiplies_is_bounded_by_the_size_of_the_file() {
    // 2^30 tensors: each list holds the one before it twice.
    let mut laughs = [b"]", &weight()[..], b"a"].concat();
    for _ in 0..30 {
        laughs = [&laughs[..], b"q\x00h\x00\x86"].concat();
    }
    assert_refused(&legacy(&laughs), &["too large"]);
    // The same of nothing.
    let nothing = [&b"]"[..], &b"q\x00h\x00\x86".repeat(26)].concat();
    assert_refused(&alone(&nothing), &["too large"]);
    // One storage of 256 KiB under 1000 names.
    let data = floats(1 << 16);
    let first = [tensor(storage("FloatStorage", "0", 1 << 16), 0, &[1 << 16], &[1]), b"q\x00".to_vec()].concat();
    let names: Vec<String> = (0..1000).map(|i| format!("w{i}")).collect();
    let entries: Vec<(&str, Vec<u8>)> =
        names.iter().enumerate().map(|(i, name)| (&name[..], if i == 0 { first.clone() } else { b"h\x00".to_vec() })).collect();
    assert_refused(&legacy_with(&dict(&entries), &[("0", 1 << 16, &data)]), &["too large", "16 times the file"]);
    // A list of 100,000 pairs, made into 1000 dicts.
    let pairs: Vec<u8> = (0..100_000).flat_map(|i| [int(i), b"N\x86".to_vec()].concat()).collect();
    let list = [&b"]q\x00("[..], &pairs, b"e"].concat();
    let dicts = [&b"("[..], &list, &b"ccollections\nOrderedDict\nh\x00\x85R".repeat(1000), b"t"].concat();
    assert_refused(&legacy(&dicts), &["opcodes"]);
}

#[test]
fn a_pickle_of_too_many_opcodes_is_refused() {
    assert_refused(&legacy(&vec![b'N'; 5_000_000]), &["more than 2097152 opcodes"]);
}

#[test]
fn views_stay_in_their_storage() {
    for (shape, strides, offset) in [
        (&[5][..], &[1][..], 0),
        (&[4], &[1], 1),
        (&[2], &[4], 0),
        (&[2, 2], &[3, 1], 0),
        (&[1], &[1], 4),
        (&[], &[], 4),
        (&[2], &[i64::MAX], 0),
        (&[2, 2], &[i64::MAX, i64::MAX], i64::MAX),
        (&[1], &[1], i64::MAX),
    ] {
        assert_refused(&one(shape, strides, offset), &["w reaches past the end of its storage"]);
    }
    assert!(parse("good.pth", &one(&[1, 4, 1], &[i64::MAX, 1, i64::MAX], 0)).is_ok(), "a stride along which nothing moves");
}

#[test]
fn sizes_that_overflow_or_are_negative_are_refused_with_the_tensor_named() {
    assert_refused(&one(&[1 << 62, 1 << 62], &[0, 0], 0), &["w: its shape", "overflows"]);
    assert_refused(&one(&[i64::MAX], &[0], 0), &["overflows"]);
    assert_refused(&one(&[1 << 62, 1 << 62, 0], &[0, 0, 0], 0), &["overflows"]);
    for (shape, stride, offset) in [(-1, 1, 0), (4, -1, 3), (4, 1, -1), (i64::MIN, 1, 0)] {
        assert_refused(&one(&[shape], &[stride], offset), &["the size, stride or offset -"]);
    }
    let short = [&b"ctorch._utils\n_rebuild_tensor\n("[..], &storage("FloatStorage", "0", 4), b"\x8a\x01\x80))tR"].concat();
    assert_refused(&legacy(&short), &["the size, stride or offset -128"]);
    for numel in [-1, i64::MIN] {
        let object = dict(&[("w", tensor(storage("FloatStorage", "0", numel), 0, &[4], &[1]))]);
        assert_refused(&legacy_with(&object, &[("0", numel, &floats(4))]), &["the size, stride or offset -"]);
    }
    for numel in [3, 5, 1 << 40, 1 << 62, i64::MAX] {
        let object = dict(&[("w", tensor(storage("FloatStorage", "0", numel), 0, &[4], &[1]))]);
        assert_refused(&legacy_with(&object, &[("0", numel, &floats(4))]), &["damaged"]);
        assert_refused(&torch_zip(&object), &["the storage \"0\" has 16 bytes"]);
        let object = dict(&[("w", weight())]);
        assert_refused(&legacy_with(&object, &[("0", numel, &floats(4))]), &["the storage \"0\" does not have its 4 elements"]);
    }
}

#[test]
fn a_view_that_repeats_elements_cannot_fill_the_memory() {
    assert_refused(&one(&[1 << 40], &[0], 0), &["too large"]);
    assert_refused(&one(&[1 << 20, 1 << 20], &[0, 0], 0), &["too large"]);
    assert_eq!(parse("good.pth", &one(&[1000], &[0], 3)).unwrap()["w"].floats().unwrap(), [3.0; 1000]);
}

#[test]
fn a_storage_is_one_thing_and_is_there_once() {
    let weight = |kind, numel| tensor(storage(kind, "0", numel), 0, &[2], &[1]);
    let two = |a, b| legacy(&dict(&[("a", a), ("b", b)]));
    assert_refused(&two(weight("FloatStorage", 4), weight("IntStorage", 4)), &["the storage \"0\" with two types or sizes"]);
    assert_refused(&two(weight("FloatStorage", 4), weight("FloatStorage", 2)), &["the storage \"0\" with two types or sizes"]);
    assert_refused(&legacy(&dict(&[("w", storage("FloatStorage", "0", 4))])), &["\"w\": a storage without a tensor"]);
    let object = dict(&[("w", weight("FloatStorage", 4))]);
    assert_refused(&legacy_with(&object, &[]), &["\"w\": its storage \"0\" is missing"]);
    let data = floats(4);
    assert_refused(&legacy_with(&object, &[("0", 4, &data), ("0", 4, &data)]), &["twice"]);
    assert_refused(&legacy_with(&object, &[("0", 4, &data), ("1", 4, &data)]), &["no tensor names the storage \"1\""]);
    assert_refused(&[legacy(&object), vec![0]].concat(), &["1 bytes follow"]);
    assert_refused(&zip(Stored, &[("a/data.pkl", &pickle(&object))]), &["a/data/0"]);
    assert_refused(&legacy(&dict(&[("w", weight("ComplexFloatStorage", 4))])), &["torch.ComplexFloatStorage"]);
    assert_refused(&legacy(&dict(&[("w", weight("QInt8Storage", 4))])), &["torch.QInt8Storage"]);
}

#[test]
fn names_are_unique_printable_and_no_way_out_of_a_directory() {
    assert_refused(&legacy(&dict(&[("w", weight()), ("w", weight())])), &["\"w\"", "twice"]);
    assert_refused(&legacy(&dict(&[("a.b", weight()), ("a", dict(&[("b", weight())]))])), &["a.b", "twice"]);
    let long = "x".repeat(513);
    for name in ["../../etc/passwd", "/etc/passwd", "a/../../b", "..\\b", "a\u{1b}[31mb", "a\nb", "a\0b", &long] {
        assert_refused(&legacy(&dict(&[(name, weight())])), &["the name"]);
        if !name.contains('\0') {
            let entry = format!("{name}.npy");
            assert_refused(&zip(Stored, &[(&entry, &npy("<f4", "(1,)", &floats(1)))]), &["refused"]);
        }
    }
    assert!(refusal(&legacy(&dict(&[("a\u{1b}[31mb", weight())]))).chars().all(|c| !c.is_control()));
    assert!(refusal(&legacy(b"cos\x1b[31m\nsystem\n")).chars().all(|c| !c.is_control()));
    let escape = r#"{"w":{"dtype":"F\u001b[31m","shape":[2],"data_offsets":[0,8]}}"#;
    assert!(refusal(&safetensors(escape, &floats(2))).chars().all(|c| !c.is_control()));
    let endless = text(&"x".repeat(100_000));
    assert!(refusal(&legacy(&[&b"}("[..], &endless, b"N", &endless, b"Nu"].concat())).len() < 300);
    assert_refused(&legacy(&weight()), &["without a name"]);
    assert_refused(&legacy(&[b"}", &tuple(&[text("a"), text("b")])[..], &weight(), b"s"].concat()), &["a dict's key"]);
}

#[test]
fn not_a_number_and_infinity_are_refused_with_the_tensor_named() {
    for file in ["nan.legacy.pth", "nan.zip.pth"] {
        assert_refused(&fixture(file), &["layer.bias holds NaN or infinity"]);
    }
    let kinds: [(&str, &[u8], &str); 6] = [
        ("<f2", &0x7c00u16.to_le_bytes(), "F16"),
        ("<f2", &0xfe01u16.to_le_bytes(), "F16"),
        ("<f4", &f32::NEG_INFINITY.to_le_bytes(), "F32"),
        ("<f4", &f32::NAN.to_le_bytes(), "F32"),
        ("<f8", &f64::NAN.to_le_bytes(), "F64"),
        ("<f8", &f64::INFINITY.to_le_bytes(), "F64"),
    ];
    for (descr, bytes, dtype) in kinds {
        assert_refused(&one_member(&npy(descr, "(1,)", bytes)), &["w holds NaN"]);
        let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,{}]}}}}"#, bytes.len());
        assert_refused(&safetensors(&header, bytes), &["w holds NaN"]);
    }
    let header = r#"{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}"#;
    assert_refused(&safetensors(header, &[0, 0, 0x80, 0xff]), &["w holds NaN"]);
}

#[test]
fn big_endian_files_are_refused() {
    let object = pickle(&dict(&[("w", weight())]));
    let entries: [(&str, &[u8]); 3] = [("a/data.pkl", &object), ("a/byteorder", b"big"), ("a/data/0", &floats(4))];
    assert_refused(&zip(Stored, &entries), &["big-endian"]);
    assert_refused(&replace(&one(&[4], &[1], 0), b"little_endian\x88", b"little_endian\x89"), &["big-endian"]);
    assert_refused(&fixture("big-endian.npz"), &["\"bad\"", "big-endian"]);
}

#[test]
fn a_zip_says_everything_once() {
    let two = zip(Stored, &[("a.npy", &npy("<f4", "(1,)", &floats(1))), ("b.npy", &npy("<f4", "(1,)", &floats(1)))]);
    assert_eq!(parse("good.npz", &two).unwrap().len(), 2);
    let twice = replace(&replace(&two, b"b.npy", b"a.npy"), b"b.npy", b"a.npy");
    assert_refused(&twice, &["two entries of one name"]);
    // The second entry of the directory shows to the first one's bytes.
    let directory = two.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    let mut overlapping = two.clone();
    overlapping[directory + 42..][..4].fill(0);
    refusal(&overlapping);
    let torch = [("a/data.pkl", &b"\x80\x02}."[..]), ("b/data.pkl", b"\x80\x02}.")];
    assert_refused(&zip(Stored, &torch), &["several data.pkl"]);
    assert_refused(&zip(Stored, &[("readme.txt", b"")]), &["neither a data.pkl"]);
    assert_refused(&zip(Stored, &[("a.npy", &npy("<f4", "(1,)", &floats(1))), ("run.sh", b"")]), &["run.sh"]);
}

#[test]
fn an_entry_that_differs_from_its_checksum_is_damaged() {
    for file in ["weights.zip.pth", "stored.npz"] {
        let bytes = fixture(file);
        // The elements of conv.weight, -1.0, -0.75, -0.5, ….
        let spoiled = replace(&bytes, &[0, 0, 0x80, 0xbf, 0, 0, 0x40, 0xbf], &[0, 0, 0x80, 0xbf, 0, 0, 0x41, 0xbf]);
        assert_refused(&spoiled, &["damaged", "checksum"]);
    }
}

#[test]
fn a_compressed_entry_of_torchs_zip_is_refused() {
    let object = pickle(&dict(&[("w", weight())]));
    assert_refused(&zip(Deflated, &[("a/data.pkl", &object), ("a/data/0", &floats(4))]), &["a/data.pkl", "compressed"]);
}

#[test]
fn a_zip_bomb_is_refused_before_it_is_inflated() {
    let zeros = vec![0; 64 << 20];
    let bomb = one_member(&npy("<f4", "(16777216,)", &zeros));
    assert!(bomb.len() < 100_000);
    assert_refused(&bomb, &["too large"]);
    // A header that claims much is not believed, one that claims little does not make more be inflated.
    assert_refused(&one_member(&npy("<f4", "(1099511627776,)", &zeros[..4])), &["too large"]);
    let lying = one_member(&npy("<f4", "(1,)", &zeros));
    assert_refused(&lying, &["w", "does not have the 4 bytes"]);
    // Many members, each within the limit.
    let member = npy("<f4", "(131072,)", &zeros[..1 << 19]);
    let names: Vec<String> = (0..100).map(|i| format!("{i}.npy")).collect();
    let entries: Vec<(&str, &[u8])> = names.iter().map(|name| (&name[..], &member[..])).collect();
    assert_refused(&zip(Deflated, &entries), &["too large"]);
}

#[test]
fn npy_headers_other_than_numpys_are_refused() {
    let of = |bytes: &[u8]| zip(Stored, &[("w.npy", bytes)]);
    assert_refused(&fixture("objects.npz"), &["\"bad\"", "pickle"]);
    for descr in ["<U4", "<c8", "|V2", "<u4", "<f16", "float32", ""] {
        assert_refused(&of(&npy(descr, "(1,)", &floats(1))), &["w", "the type"]);
    }
    for shape in
        ["(-1,)", "(1.0,)", "(x,)", "(1,,1)", "(,)", "[1]", "1", "((1,),)", "(99999999999999999999,)", "(1,), 'more': (1,)"]
    {
        assert_refused(&of(&npy("<f4", shape, &floats(1))), &["w", "the npy header"]);
    }
    assert_refused(&of(&npy("<f4", "(4611686018427387904, 4)", &floats(1))), &["w", "overflows"]);
    assert_refused(&of(&npy("<f4", "(2,)", &floats(1))), &["w", "does not have the 8 bytes"]);
    assert_refused(&of(&npy("<f4", "(1,)", &floats(2))), &["w", "does not have the 4 bytes"]);
    assert_refused(&of(b"\x93NUMPY\x02\x00\xff\xff\xff\xff"), &["w", "4294967295 bytes"]);
    assert_refused(&of(b"\x93NUMPY\x04\x00\x00\x00"), &["w", "no npy header"]);
    refusal(&of(b"\x93NUM"));
    let nested = format!("({},)", "(".repeat(4000));
    assert_refused(&of(&npy("<f4", &nested, &floats(1))), &["w", "npy header"]);
}

#[test]
fn safetensors_headers_that_lie_are_refused() {
    let of = |header: &str| safetensors(header, &floats(2));
    for header in [
        r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
        r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,12]}}"#,
        r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#,
        r#"{"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#,
        r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
        r#"{"w":{"dtype":"Q4","shape":[2],"data_offsets":[0,8]}}"#,
        r#"{"w":"#,
    ] {
        assert_refused(&of(header), &["damaged"]);
    }
    let twice = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}"#;
    assert_refused(&of(twice), &["\"w\"", "twice"]);
    assert_refused(&of(r#"{"w":{"dtype":"U32","shape":[2],"data_offsets":[0,8]}}"#), &["\"w\"", "U32"]);
    assert_refused(&of("{}"), &["damaged"]);
    assert_refused(&safetensors("{}", &[]), &["without tensors"]);
    let deep = format!("{{\"w\":{}", "[".repeat(100_000));
    assert_refused(&of(&deep), &["damaged"]);
}

#[test]
fn what_is_no_checkpoint_is_named_for_what_it_seems() {
    assert_refused(b"", &["empty"]);
    assert_refused(b"<!DOCTYPE html><html>Not found</html>", &["a web page with an error message"]);
    assert_refused(b"\x80\x02}.", &["without torch's magic number"]);
    assert_refused(b"\x89HDF\r\n\x1a\n", &["HDF5"]);
    assert_refused(&alone(b"}"), &["without tensors"]);
    let good = fixture("weights.legacy.pth");
    for at in 0..15 {
        let mut wrong = good.clone();
        wrong[at] ^= 1;
        assert_refused(&wrong, &["as a checkpoint"]);
    }
    assert_refused(&replace(&good, b"M\xe9\x03.", b"M\xea\x03."), &["protocol"]);
}

#[test]
fn a_file_too_large_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse.pth");
    std::fs::File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
    let error = read(&path).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }) && error.to_string().contains("sparse.pth"), "{error}");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for name in GOOD {
        let bytes = fixture(name);
        let whole = parse(name, &bytes).unwrap();
        for length in 0..bytes.len() {
            match parse(name, &bytes[..length]) {
                Ok(read) => assert!(read == whole, "{name} cut to {length} bytes"),
                Err(error) => assert!(error.to_string().contains(name), "{error}"),
            }
        }
    }
}

#[test]
fn no_change_of_some_bytes_makes_it_panic() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let all: Vec<Vec<u8>> = GOOD.iter().chain(&BAD).map(|name| fixture(name)).collect();
    let mut read = 0;
    for _ in 0..3000 {
        for bytes in &all {
            let mut bytes = bytes.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                match rng.random_range(0..4) {
                    0 => bytes[at] = rng.random(),
                    1 => bytes[at] ^= 1 << rng.random_range(0..8),
                    2 => drop(bytes.splice(at..at, [rng.random()])),
                    _ => drop(bytes.remove(at)),
                }
            }
            read += usize::from(parse("mutated", &bytes).is_ok_and(|read| consistent(&read)));
        }
    }
    assert!(read > 0, "no mutant was read: the mutations reach nothing");
}

fn consistent(read: &StateDict) -> bool {
    for (name, array) in read {
        assert_eq!(array.shape.iter().product::<usize>() * array.dtype.size(), array.data.len(), "{name}");
    }
    true
}

// Old files that are read.

#[test]
fn files_that_python_2_wrote_are_read() {
    // Its strings are SHORT_BINSTRING; its OrderedDict is called with a list of lists of key and value.
    let old = |text: &str| [b"U", &[text.len() as u8][..], text.as_bytes()].concat();
    let id = tuple(&[old("storage"), b"ctorch\nFloatStorage\n".to_vec(), old("0"), old("cuda:0"), int(4), b"N".to_vec()]);
    let weight =
        [&b"ctorch._utils\n_rebuild_tensor\n"[..], &tuple(&[[&id[..], b"Q"].concat(), int(0), ints(&[4]), ints(&[1])]), b"R"];
    let pair = [&b"]("[..], &old("conv.weight"), &weight.concat(), b"e"].concat();
    let object = [&b"ccollections\nOrderedDict\n]"[..], &pair, b"a\x85R"].concat();
    let read = parse("old.pth", &legacy(&object)).unwrap();
    assert_eq!(read["conv.weight"].floats().unwrap(), [0.0, 1.0, 2.0, 3.0]);
}

#[test]
fn views_of_storages_as_torch_wrote_them_until_0_2_are_read() {
    let of = |offset, numel, shape| {
        let view = tuple(&[text("9"), int(offset), int(numel)]);
        let id = tuple(&[text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu"), int(4), view]);
        legacy(&dict(&[("w", tensor([&id[..], b"Q"].concat(), 0, &[shape], &[1]))]))
    };
    assert_eq!(parse("old.pth", &of(1, 2, 2)).unwrap()["w"].floats().unwrap(), [1.0, 2.0]);
    assert_refused(&of(1, 2, 3), &["w reaches past the end of its storage of 8 bytes"]);
    assert_refused(&of(3, 2, 1), &["a view reaches past the end of the storage \"0\""]);
    assert_refused(&of(i64::MAX, i64::MAX, 1), &["a view reaches past the end"]);
}
