//! The part of Python's pickle language (protocol 2) that `torch.save` uses for dicts of tensors, and no more.
//!
//! Opcodes: CPython `Lib/pickletools.py`. Globals and persistent ids: torch `serialization.py`, `_utils.py`. Nothing is called: a
//! global is one of [`Global`], REDUCE of it builds one of [`Value`], BUILD of the `_metadata` of an OrderedDict does nothing.
//! Values live in arenas and refer to each other by index, so nested, shared or cyclic values cost nothing extra.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::{Dtype, Error, Input, Output, View, shown};

/// Limit of opcodes in one pickle; torch.save writes 34 for a tensor. It bounds stack, memo and arenas: the worst pickle tried took
/// 0.3 GB.
const MAX_OPCODES: usize = 2 << 20;
/// Limit of a tensor's dimensions. torch's is 64, NumPy's was long 32.
const MAX_DIMENSIONS: usize = 32;
/// Limit of nested dicts; checkpoints have three or four levels.
const MAX_DEPTH: usize = 32;

/// A value on the stack.
#[derive(Clone, Copy, Debug, Default)]
pub enum Value<'a> {
    #[default]
    None,
    Bool(bool),
    Int(i64),
    /// A float, or an integer of more than 64 bits.
    Number,
    Str(&'a str),
    Global(Global),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Storage(usize),
    Tensor(usize),
}

/// The globals that a pickle may name.
#[derive(Clone, Copy, Debug)]
pub enum Global {
    OrderedDict,
    Size,
    RebuildTensor,
    RebuildTensorV2,
    RebuildParameter,
    Storage(Dtype),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key<'a> {
    Int(i64),
    Str(&'a str),
}

impl std::fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Int(key) => key.fmt(f),
            Key::Str(key) => key.fmt(f),
        }
    }
}

#[derive(Default)]
struct Dict<'a> {
    ordered: bool,
    entries: BTreeMap<Key<'a>, Value<'a>>,
}

/// Elements of the storages, by key.
type Storages<'d> = BTreeMap<&'d str, &'d [u8]>;

/// A part of a storage: as `torch.save` wrote views until 0.2, all of it since.
#[derive(Clone, Copy)]
struct Part<'a> {
    key: &'a str,
    dtype: Dtype,
    /// Number of elements before it.
    offset: usize,
    numel: usize,
}

struct Tensor {
    storage: usize,
    view: View,
}

/// The values that a pickle built.
#[derive(Default)]
pub struct Pickle<'a> {
    pub root: Value<'a>,
    /// Type and number of elements of each storage.
    pub storages: BTreeMap<&'a str, (Dtype, usize)>,
    input: Input<'a>,
    /// The items of tuples and lists.
    sequences: Vec<Vec<Value<'a>>>,
    dicts: Vec<Dict<'a>>,
    parts: Vec<Part<'a>>,
    tensors: Vec<Tensor>,
}

impl<'a> Pickle<'a> {
    /// Runs the pickle at the front of `bytes`, and removes it from them. `bytes` is a part of `input`, which errors name.
    pub fn load(input: Input<'a>, bytes: &mut &'a [u8]) -> Result<Self, Error> {
        let pickle = Pickle { input, ..Pickle::default() };
        let mut machine = Machine { pickle, whole: bytes, rest: bytes, ..Machine::default() };
        machine.run()?;
        *bytes = machine.rest;
        Ok(machine.pickle)
    }

    /// Items of a list or tuple.
    pub fn items(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::Tuple(at) | Value::List(at) => Some(&self.sequences[at]),
            _ => None,
        }
    }

    /// A dict's value for a string key.
    pub fn get(&self, value: Value<'a>, key: &str) -> Option<Value<'a>> {
        match value {
            Value::Dict(at) => self.dicts[at].entries.get(&Key::Str(key)).copied(),
            _ => None,
        }
    }

    /// Puts every tensor under its path into `out`.
    pub fn flatten(&self, data: &Storages, out: &mut Output) -> Result<(), Error> {
        self.put_value(self.root, String::new(), 0, data, out)
    }

    fn put_value(&self, value: Value<'a>, path: String, depth: usize, data: &Storages, out: &mut Output) -> Result<(), Error> {
        // A value may be in many places: each is paid for.
        out.spend(1 + path.len())?;
        if depth > MAX_DEPTH {
            return Err(self.input.refused(format!("{}: dicts nested deeper than {MAX_DEPTH}", shown(&path))));
        }
        let below = |key: &dyn std::fmt::Display| if depth == 0 { key.to_string() } else { format!("{path}.{key}") };
        match value {
            Value::Dict(at) => {
                for (key, &value) in &self.dicts[at].entries {
                    self.put_value(value, below(key), depth + 1, data, out)?;
                }
                Ok(())
            }
            Value::Tuple(at) | Value::List(at) => {
                for (i, &value) in self.sequences[at].iter().enumerate() {
                    self.put_value(value, below(&i), depth + 1, data, out)?;
                }
                Ok(())
            }
            Value::Tensor(at) => {
                let Tensor { storage, view } = &self.tensors[at];
                let Part { key, dtype, offset, numel } = self.parts[*storage];
                let whole = data
                    .get(key)
                    .ok_or_else(|| self.input.damaged(format!("{}: its storage {} is missing", shown(&path), shown(key))))?;
                // Both products were checked against the data when it was found.
                let part = &whole[offset * dtype.size()..][..numel * dtype.size()];
                out.insert(path, View { shape: view.shape.clone(), strides: view.strides.clone(), ..*view }, part)
            }
            Value::Storage(_) => Err(self.input.refused(format!("{}: a storage without a tensor", shown(&path)))),
            Value::None | Value::Bool(_) | Value::Int(_) | Value::Number | Value::Str(_) | Value::Global(_) => Ok(()),
        }
    }
}

#[derive(Default)]
struct Machine<'a> {
    pickle: Pickle<'a>,
    whole: &'a [u8],
    rest: &'a [u8],
    stack: Vec<Value<'a>>,
    /// Heights of the stack; values below the last one are not popped.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Value<'a>>,
    /// Number of opcodes so far.
    done: usize,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<(), Error> {
        if self.take(2)? != [0x80, 2] {
            return Err(self.refused("a pickle of a protocol other than 2, which torch.save writes"));
        }
        loop {
            self.work(1)?;
            let opcode = self.byte()?;
            let value = match opcode {
                b'.' => return self.stop(),
                b'(' => {
                    self.marks.push(self.stack.len());
                    continue;
                }
                b'N' => Value::None,
                0x88 => Value::Bool(true),
                0x89 => Value::Bool(false),
                b'K' => Value::Int(self.byte()?.into()),
                b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()),
                b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
                0x8a => {
                    let length = self.byte()?;
                    long(self.take(length.into())?)
                }
                b'G' => {
                    self.take(8)?;
                    Value::Number
                }
                // U and T are Python 2's strings.
                b'X' | b'T' => self.string(4)?,
                b'U' => self.string(1)?,
                b']' => self.sequence(Value::List, Vec::new()),
                b')' => self.sequence(Value::Tuple, Vec::new()),
                b't' | 0x85..=0x87 => {
                    let items = self.operands(opcode)?;
                    self.sequence(Value::Tuple, items)
                }
                b'}' => self.dict(false),
                b'a' | b'e' => {
                    let items = self.operands(opcode)?;
                    self.append(items)?
                }
                b's' | b'u' => {
                    let items = self.operands(opcode)?;
                    self.set_items(&items)?
                }
                b'c' => self.global()?,
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                b'Q' => self.persistent()?,
                b'q' | b'r' => {
                    let at = self.index(opcode == b'q')?;
                    let value = self.pop()?;
                    self.memo.insert(at, value);
                    value
                }
                b'h' | b'j' => {
                    let at = self.index(opcode == b'h')?;
                    *self.memo.get(&at).ok_or_else(|| self.damaged(format!("the memo has nothing under {at}")))?
                }
                other => {
                    let name = REFUSED.iter().find(|(code, _)| *code == other).map_or("outside the language", |(_, name)| name);
                    return Err(self.refused(format!("the opcode {name} (0x{other:02x})")));
                }
            };
            self.stack.push(value);
        }
    }

    /// Counts opcodes against the limit, and the work of one that does as much as many.
    fn work(&mut self, opcodes: usize) -> Result<(), Error> {
        self.done += opcodes;
        if self.done > MAX_OPCODES { Err(self.refused(format!("a pickle of more than {MAX_OPCODES} opcodes"))) } else { Ok(()) }
    }

    fn stop(&mut self) -> Result<(), Error> {
        match (&self.stack[..], &self.marks[..]) {
            (&[root], []) => {
                self.pickle.root = root;
                Ok(())
            }
            _ => Err(self.damaged("the pickle does not end with exactly one value")),
        }
    }

    /// The index of a memo entry, in one byte if `short`, else in four.
    fn index(&mut self, short: bool) -> Result<u32, Error> {
        Ok(if short { self.byte()?.into() } else { u32::from_le_bytes(self.array()?) })
    }

    /// A string after its length of 1 or 4 bytes.
    fn string(&mut self, width: usize) -> Result<Value<'a>, Error> {
        let length = if width == 1 { self.byte()?.into() } else { u32::from_le_bytes(self.array()?) };
        let bytes = self.take(length as usize)?;
        std::str::from_utf8(bytes).map(Value::Str).map_err(|_| self.refused("a string that is not UTF-8"))
    }

    fn sequence(&mut self, kind: impl Fn(usize) -> Value<'a>, items: Vec<Value<'a>>) -> Value<'a> {
        self.pickle.sequences.push(items);
        kind(self.pickle.sequences.len() - 1)
    }

    fn dict(&mut self, ordered: bool) -> Value<'a> {
        self.pickle.dicts.push(Dict { ordered, ..Dict::default() });
        Value::Dict(self.pickle.dicts.len() - 1)
    }

    fn append(&mut self, items: Vec<Value<'a>>) -> Result<Value<'a>, Error> {
        match self.pop()? {
            list @ Value::List(at) => {
                self.pickle.sequences[at].extend(items);
                Ok(list)
            }
            _ => Err(self.refused("APPEND to a value that is not a list")),
        }
    }

    /// Adds alternating keys and values to the dict below them on the stack.
    fn set_items(&mut self, items: &[Value<'a>]) -> Result<Value<'a>, Error> {
        let dict = self.pop()?;
        let Value::Dict(at) = dict else { return Err(self.refused("SETITEM on a value that is not a dict")) };
        let (pairs, []) = items.as_chunks::<2>() else { return Err(self.damaged("a key without its value")) };
        for &[key, value] in pairs {
            let key = match key {
                Value::Str(key) => Key::Str(key),
                Value::Int(key) => Key::Int(key),
                _ => return Err(self.refused("a dict's key that is neither a string nor an integer")),
            };
            match self.pickle.dicts[at].entries.entry(key) {
                Entry::Vacant(entry) => entry.insert(value),
                Entry::Occupied(_) => {
                    return Err(self.refused(format!("the key {}, which occurs twice in one dict", shown(&key.to_string()))));
                }
            };
        }
        Ok(dict)
    }

    fn global(&mut self) -> Result<Value<'a>, Error> {
        let (module, name) = (self.line()?, self.line()?);
        Ok(Value::Global(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch", "Size") => Global::Size,
            ("torch._utils", "_rebuild_tensor") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensorV2,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", "DoubleStorage") => Global::Storage(Dtype::F64),
            ("torch", "FloatStorage") => Global::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Global::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Global::Storage(Dtype::Bf16),
            ("torch", "LongStorage") => Global::Storage(Dtype::I64),
            ("torch", "IntStorage") => Global::Storage(Dtype::I32),
            ("torch", "ShortStorage") => Global::Storage(Dtype::I16),
            ("torch", "CharStorage") => Global::Storage(Dtype::I8),
            ("torch", "ByteStorage") => Global::Storage(Dtype::U8),
            ("torch", "BoolStorage") => Global::Storage(Dtype::Bool),
            _ => {
                let advice =
                    "only dicts of plain tensors are read; if you trust the file, load it in Python and save its state_dict";
                return Err(self.refused(format!("the global {}: {advice}", shown(&format!("{module}.{name}")))));
            }
        }))
    }

    /// A call of a global. Only the few that build a value are allowed, with arguments of the right types.
    fn reduce(&mut self) -> Result<Value<'a>, Error> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let Value::Global(global) = callee else { return Err(self.refused("REDUCE of a value that is not a global")) };
        let Value::Tuple(arguments) = arguments else { return Err(self.refused("REDUCE without a tuple of arguments")) };
        match (global, &self.pickle.sequences[arguments][..]) {
            (Global::OrderedDict, []) => Ok(self.dict(true)),
            // Python 2 gives a list of lists of key and value.
            (Global::OrderedDict, &[Value::List(at)]) => {
                self.work(self.pickle.sequences[at].len())?;
                let pairs = self.pickle.sequences[at].clone();
                let dict = self.dict(true);
                for pair in pairs {
                    let &[key, value] = self.pickle.items(pair).unwrap_or_default() else {
                        return Err(self.refused("an OrderedDict whose items are not pairs"));
                    };
                    self.stack.push(dict);
                    self.set_items(&[key, value])?;
                }
                Ok(dict)
            }
            (Global::Size, &[sizes @ Value::Tuple(_)]) => Ok(sizes),
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), Value::Bool(_), _]) => Ok(tensor),
            (Global::RebuildTensor, &[Value::Storage(storage), offset, shape, strides])
            | (Global::RebuildTensorV2, &[Value::Storage(storage), offset, shape, strides, Value::Bool(_), _]) => {
                let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
                if shape.len() != strides.len() {
                    return Err(self.refused("a tensor without exactly one stride for each size"));
                }
                let view = View { dtype: self.pickle.parts[storage].dtype, shape, strides, offset: self.size(offset)? };
                self.pickle.tensors.push(Tensor { storage, view });
                Ok(Value::Tensor(self.pickle.tensors.len() - 1))
            }
            _ => Err(self.refused(format!("a call of {global:?} with arguments that torch.save does not write"))),
        }
    }

    /// BUILD sets attributes; state_dict() has one, `_metadata`, with versions of modules.
    fn build(&mut self) -> Result<Value<'a>, Error> {
        let (state, target) = (self.pop()?, self.pop()?);
        match (target, state) {
            (Value::Dict(at), Value::Dict(state))
                if self.pickle.dicts[at].ordered && self.pickle.dicts[state].entries.keys().eq(&[Key::Str("_metadata")]) =>
            {
                Ok(target)
            }
            _ => Err(self.refused("BUILD of anything but the _metadata of an OrderedDict")),
        }
    }

    /// `('storage', type, key, location, numel[, view])`, where view is None or `(key, offset, numel)`.
    fn persistent(&mut self) -> Result<Value<'a>, Error> {
        let id = self.pop()?;
        let id = self.pickle.items(id).unwrap_or_default();
        let (&[Value::Str("storage"), Value::Global(Global::Storage(dtype)), Value::Str(key), Value::Str(_), numel], view) =
            id.split_first_chunk::<5>().unwrap_or((&[Value::None; 5], &[]))
        else {
            return Err(self.refused("a persistent id that is not a storage of a known type"));
        };
        let whole = self.size(numel)?;
        let (offset, numel) = match view {
            [] | [Value::None] => (0, whole),
            &[view @ Value::Tuple(_)] => match self.pickle.items(view) {
                Some(&[Value::Str(_), offset, numel]) => (self.size(offset)?, self.size(numel)?),
                _ => return Err(self.refused(format!("the view of the storage {}", shown(key)))),
            },
            _ => return Err(self.refused(format!("the view of the storage {}", shown(key)))),
        };
        if offset.checked_add(numel).is_none_or(|end| end > whole) {
            return Err(self.damaged(format!("a view reaches past the end of the storage {}", shown(key))));
        }
        if *self.pickle.storages.entry(key).or_insert((dtype, whole)) != (dtype, whole) {
            return Err(self.refused(format!("the storage {} with two types or sizes", shown(key))));
        }
        self.pickle.parts.push(Part { key, dtype, offset, numel });
        Ok(Value::Storage(self.pickle.parts.len() - 1))
    }

    fn sizes(&self, value: Value<'a>) -> Result<Vec<usize>, Error> {
        match value {
            Value::Tuple(at) if self.pickle.sequences[at].len() <= MAX_DIMENSIONS => {
                self.pickle.sequences[at].iter().map(|&value| self.size(value)).collect()
            }
            _ => Err(self.refused(format!("a tensor whose shape or strides are not a tuple of at most {MAX_DIMENSIONS}"))),
        }
    }

    fn size(&self, value: Value<'a>) -> Result<usize, Error> {
        match value {
            Value::Int(size) => usize::try_from(size).map_err(|_| self.refused(format!("the size, stride or offset {size}"))),
            _ => Err(self.refused("a size, stride or offset that is not an integer")),
        }
    }

    fn pop(&mut self) -> Result<Value<'a>, Error> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(value) if self.stack.len() >= floor => Ok(value),
            _ => Err(self.damaged("an opcode needs a value, and the stack is empty")),
        }
    }

    /// The values that an opcode takes from the stack: a fixed number, or all above the last mark.
    fn operands(&mut self, opcode: u8) -> Result<Vec<Value<'a>>, Error> {
        let count = match opcode {
            b'a' => 1,
            b's' => 2,
            0x85..=0x87 => usize::from(opcode - 0x84),
            _ => {
                let mark =
                    self.marks.pop().ok_or_else(|| self.damaged("an opcode needs a mark, and there is none on the stack"))?;
                return Ok(self.stack.split_off(mark));
            }
        };
        let mut items = vec![Value::None; count];
        for item in items.iter_mut().rev() {
            *item = self.pop()?;
        }
        Ok(items)
    }

    fn line(&mut self) -> Result<&'a str, Error> {
        let end = self.rest.iter().position(|&byte| byte == b'\n').ok_or_else(|| self.ends())?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|_| self.refused("a global that is not UTF-8"))
    }

    fn byte(&mut self) -> Result<u8, Error> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (array, rest) = self.rest.split_first_chunk().ok_or_else(|| self.ends())?;
        self.rest = rest;
        Ok(*array)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.ends())?;
        self.rest = rest;
        Ok(taken)
    }

    fn ends(&self) -> Error {
        self.damaged("the file ends within it")
    }

    fn damaged(&self, what: impl std::fmt::Display) -> Error {
        self.pickle.input.damaged(format!("pickle, at its byte {}: {what}", self.at()))
    }

    fn refused(&self, what: impl std::fmt::Display) -> Error {
        self.pickle.input.refused(format!("{what} (pickle, at its byte {})", self.at()))
    }

    fn at(&self) -> usize {
        self.whole.len() - self.rest.len()
    }
}

/// A little-endian two's complement integer.
fn long(bytes: &[u8]) -> Value<'static> {
    if bytes.len() > 8 {
        return Value::Number;
    }
    let sign = if bytes.last().is_some_and(|&top| top >= 0x80) { 0xff } else { 0 };
    let mut wide = [sign; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(wide))
}

/// The rest of the language, for messages.
#[rustfmt::skip]
const REFUSED: [(u8, &str); 36] = [
    (b'0', "POP"), (b'1', "POP_MARK"), (b'2', "DUP"), (b'F', "FLOAT"), (b'I', "INT"), (b'L', "LONG"), (b'P', "PERSID"),
    (b'S', "STRING"), (b'V', "UNICODE"), (b'd', "DICT"), (b'l', "LIST"), (b'g', "GET"), (b'p', "PUT"), (b'i', "INST"),
    (b'o', "OBJ"), (b'B', "BINBYTES"), (b'C', "SHORT_BINBYTES"), (0x80, "PROTO"), (0x81, "NEWOBJ"), (0x82, "EXT1"),
    (0x83, "EXT2"), (0x84, "EXT4"), (0x8b, "LONG4"), (0x8c, "SHORT_BINUNICODE"), (0x8d, "BINUNICODE8"), (0x8e, "BINBYTES8"),
    (0x8f, "EMPTY_SET"), (0x90, "ADDITEMS"), (0x91, "FROZENSET"), (0x92, "NEWOBJ_EX"), (0x93, "STACK_GLOBAL"),
    (0x94, "MEMOIZE"), (0x95, "FRAME"), (0x96, "BYTEARRAY8"), (0x97, "NEXT_BUFFER"), (0x98, "READONLY_BUFFER"),
];
