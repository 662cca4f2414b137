//! Where everything lies: ids resolved, constants inside their file, buffers inside their arenas.

use std::collections::HashMap;

use scoregraph_kernels::{Layout, MAX_RANK};

use crate::fault::{Code, Fault, Result};
use crate::operand::{Operand, Region};
use crate::schema::{Buffer, Constant, DType, Dim, Layout as Packing, MAX_SIZE, PlanFile, Ref, Space, Table};

/// Slots and constants begin at multiples of this.
pub const ALIGN: u64 = 64;

/// The largest arena or constants file, in bytes: 2^46, far from where an index could overflow.
const MAX_BYTES: u64 = 1 << 46;

/// A table as kernels see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablePlace {
    /// Number of micro-steps.
    pub rows: usize,
    /// Values of a row.
    pub columns: usize,
    /// Byte of the first value in the constants.
    pub byte: usize,
}

/// A buffer with memory of its own: bytes (per unit of B in the batch arena) that nobody else may use while it is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The arena.
    pub space: Space,
    /// First byte.
    pub start: u64,
    /// First byte after it, rounded up to [`ALIGN`].
    pub end: u64,
}

/// All places of a plan. Independent of the batch; [`Places::operand`] adds it.
#[derive(Debug)]
pub struct Places {
    buffers: HashMap<u64, (Buffer, Option<Slot>)>,
    constants: HashMap<u64, Constant>,
    tables: HashMap<u64, TablePlace>,
    /// Bytes of the batch arena per sample.
    pub batch_bytes: u64,
    /// Bytes of the fixed arena.
    pub fixed_bytes: u64,
}

fn multiply(factors: impl IntoIterator<Item = u64>, limit: u64) -> Option<u64> {
    factors.into_iter().try_fold(1u64, |total, n| total.checked_mul(n).filter(|&t| t <= limit))
}

impl Places {
    /// Checks ids, buffers, constants and tables; `constants_len` is the size of the constants file.
    pub fn new(plan: &PlanFile, constants_len: usize) -> Result<Places> {
        let mut places = Places {
            buffers: HashMap::new(),
            constants: HashMap::new(),
            tables: HashMap::new(),
            batch_bytes: 0,
            fixed_bytes: 0,
        };
        for constant in &plan.constants {
            let place = || format!("constant c{} ({:?})", constant.id, constant.name);
            check_constant(constant, constants_len as u64).map_err(|f| f.at(place()))?;
            if places.constants.insert(constant.id, constant.clone()).is_some() {
                return Err(Fault::plan("this id is used twice").at(place()));
            }
        }
        for buffer in &plan.buffers {
            let place = || format!("buffer b{} ({:?})", buffer.id, buffer.name);
            let slot = check_buffer(buffer).map_err(|f| f.at(place()))?;
            if let Some(Slot { space, end, .. }) = slot {
                let total = if space == Space::Batch { &mut places.batch_bytes } else { &mut places.fixed_bytes };
                *total = (*total).max(end);
            }
            if places.buffers.insert(buffer.id, (buffer.clone(), slot)).is_some() {
                return Err(Fault::plan("this id is used twice").at(place()));
            }
        }
        for buffer in plan.buffers.iter().filter(|b| b.view.is_some()) {
            places.check_view(buffer).map_err(|f| f.at(format!("buffer b{} ({:?})", buffer.id, buffer.name)))?;
        }
        for table in &plan.tables {
            let place = || format!("table {} ({:?})", table.id, table.name);
            let found = places.place_table(table).map_err(|f| f.at(place()))?;
            if places.tables.insert(table.id, found).is_some() {
                return Err(Fault::plan("this id is used twice").at(place()));
            }
        }
        Ok(places)
    }

    fn check_view(&self, buffer: &Buffer) -> Result<()> {
        let Some(view) = &buffer.view else { return Ok(()) };
        let Some((base, _)) = self.buffers.get(&view.base) else {
            return Err(Fault::plan(format!("it is a view of b{}, which does not exist", view.base)));
        };
        if base.view.is_some() {
            return Err(Fault::plan(format!("it is a view of b{}, which is itself a view", view.base)));
        }
        if base.dtype != buffer.dtype {
            return Err(Fault::plan(format!(
                "it is {} and a view of b{}, which is {}",
                buffer.dtype, base.id, base.dtype
            )));
        }
        Ok(())
    }

    fn place_table(&self, table: &Table) -> Result<TablePlace> {
        let Some(constant) = self.constants.get(&table.constant) else {
            return Err(Fault::plan(format!("its values are c{}, which does not exist", table.constant)));
        };
        let columns = table.columns.len() as u64;
        if table.rows == 0 || columns == 0 {
            return Err(Fault::plan("it has no rows or no columns"));
        }
        let fits = constant.dtype == DType::F32
            && constant.layout == Packing::Plain
            && constant.shape == [table.rows, columns];
        if !fits {
            return Err(Fault::plan(format!(
                "it has {} rows of {columns} columns, but c{} is {} {:?}",
                table.rows, constant.id, constant.dtype, constant.shape
            )));
        }
        if table.rows > u64::from(u32::MAX) {
            return Err(Fault::plan("it has more rows than micro-steps can be numbered"));
        }
        Ok(TablePlace { rows: table.rows as usize, columns: columns as usize, byte: constant.offset as usize })
    }

    /// The table of that id.
    pub fn table(&self, id: u64) -> Result<TablePlace> {
        self.tables.get(&id).copied().ok_or_else(|| Fault::plan(format!("there is no table {id}")))
    }

    /// The id of the buffer whose memory a buffer uses, and its slot.
    pub fn owner(&self, id: u64) -> Result<(u64, Slot)> {
        let missing = || Fault::plan(format!("there is no buffer b{id}"));
        let (buffer, slot) = self.buffers.get(&id).ok_or_else(missing)?;
        let (owner, slot) = match &buffer.view {
            // `new` has checked that the base exists and is no view.
            Some(view) => (view.base, self.buffers.get(&view.base).ok_or_else(missing)?.1),
            None => (id, *slot),
        };
        slot.map(|slot| (owner, slot))
            .ok_or_else(|| Fault::memory(format!("b{owner} is used but has no memory: it has neither slot nor view")))
    }

    /// Bytes of both arenas for `batch` samples.
    pub fn arena_bytes(&self, batch: u64) -> Result<(usize, usize)> {
        let total = self.batch_bytes.checked_mul(batch).filter(|&bytes| bytes <= MAX_BYTES);
        let total = total.ok_or_else(|| {
            Fault::new(Code::TooLarge, format!("{batch} samples need more memory than can be addressed"))
        })?;
        Ok((total as usize, self.fixed_bytes as usize))
    }

    /// What `name` means for `batch` samples, proved to lie inside its region.
    pub fn operand(&self, name: Ref, batch: u64) -> Result<Operand> {
        match name {
            Ref::Buffer(id) => self.buffer(id, batch),
            Ref::Constant(id) => {
                let constant =
                    self.constants.get(&id).ok_or_else(|| Fault::plan(format!("there is no constant c{id}")))?;
                let shape: Vec<usize> = constant.shape.iter().map(|&n| n as usize).collect();
                Ok(Operand {
                    name,
                    dtype: constant.dtype,
                    layout: Layout::dense(&shape).map_err(Fault::plan)?,
                    packing: constant.layout,
                    region: Region::Constants,
                    byte: constant.offset as usize,
                    extent: constant.nbytes as usize / constant.dtype.size(),
                })
            }
        }
    }

    fn buffer(&self, id: u64, batch: u64) -> Result<Operand> {
        let (_, slot) = self.owner(id)?;
        let (buffer, _) = &self.buffers[&id];
        let shape = buffer.shape.iter().map(|d| d.resolve(batch)).collect::<Result<Vec<usize>>>()?;
        let (region, unit) = match slot.space {
            Space::Batch => (Region::Batch, batch),
            Space::Fixed => (Region::Fixed, 1),
        };
        // The arena's size was checked to be addressable for this batch, and the slot ends inside it.
        self.arena_bytes(batch)?;
        let size = buffer.dtype.size() as u64;
        let start = slot.start * unit;
        let (first, window, extent) = match &buffer.view {
            None => {
                let window = Layout::dense(&shape).map_err(Fault::memory)?;
                (start, window, window.len() as u64)
            }
            Some(view) => {
                let reach = shape
                    .iter()
                    .zip(&view.strides)
                    .try_fold(0u64, |reach, (&n, &stride)| reach.checked_add((n as u64 - 1).checked_mul(stride)?));
                let base = &self.buffers[&view.base].0;
                let elements = multiply(base.shape.iter().map(|d| d.resolve(batch).unwrap_or(0) as u64), MAX_BYTES);
                let last = reach.and_then(|reach| reach.checked_add(view.offset));
                match (last, elements) {
                    (Some(last), Some(elements)) if last < elements => {}
                    _ => {
                        return Err(Fault::memory(format!(
                            "b{id}, a view of b{}, reaches beyond its end for {batch} samples",
                            view.base
                        )));
                    }
                }
                let strides: Vec<usize> = view.strides.iter().map(|&s| s as usize).collect();
                let window = Layout::new(&shape, &strides).map_err(Fault::memory)?;
                (start + view.offset * size, window, reach.unwrap_or(0) + 1)
            }
        };
        let inside = extent.checked_mul(size).is_some_and(|bytes| first + bytes <= slot.end * unit);
        if !inside {
            return Err(Fault::memory(format!("b{id} leaves its slot for {batch} samples")));
        }
        Ok(Operand {
            name: Ref::Buffer(id),
            dtype: buffer.dtype,
            layout: window,
            packing: Packing::Plain,
            region,
            byte: first as usize,
            extent: extent as usize,
        })
    }
}

fn check_shape(rank: usize, empty: bool) -> Result<()> {
    if rank > MAX_RANK {
        return Err(Fault::plan(format!("it has {rank} dimensions; the limit is {MAX_RANK}")));
    }
    if empty {
        return Err(Fault::plan("a dimension is 0"));
    }
    Ok(())
}

fn check_constant(constant: &Constant, file: u64) -> Result<()> {
    check_shape(constant.shape.len(), constant.shape.contains(&0))?;
    let padded = match (constant.layout, constant.shape.as_slice()) {
        (Packing::Plain, shape) => multiply(shape.iter().copied(), MAX_BYTES),
        (Packing::N16, &[n, k]) => multiply([n.div_ceil(16), k, 16], MAX_BYTES),
        (Packing::Oc8, &[o, i, h, w]) => multiply([o.div_ceil(8), i, h, w, 8], MAX_BYTES),
        (Packing::K2n16, &[n, k]) if k % 2 == 0 => multiply([n.div_ceil(16), k, 16], MAX_BYTES),
        (Packing::Q4n16, &[n, k]) if k % 4 == 0 => multiply([n.div_ceil(16), k, 16], MAX_BYTES),
        (Packing::Q4oc8, &[o, i, h, w]) => multiply([o.div_ceil(8), i.div_ceil(4), h, w, 8, 4], MAX_BYTES),
        (layout, shape) => {
            return Err(Fault::plan(format!("the layout {layout:?} does not fit the shape {shape:?}")));
        }
    };
    let fits = match constant.layout {
        Packing::Plain => !constant.dtype.is_weight() && constant.dtype != DType::Bf16,
        Packing::N16 | Packing::Oc8 => constant.dtype == DType::F32,
        Packing::K2n16 => constant.dtype == DType::Bf16,
        Packing::Q4n16 | Packing::Q4oc8 => constant.dtype.is_weight(),
    };
    if !fits {
        return Err(Fault::plan(format!("{} does not come in the layout {:?}", constant.dtype, constant.layout)));
    }
    let wanted = match constant.dtype {
        DType::I4 => padded.map(|n| n.div_ceil(128) * 64),
        DType::I2 => padded.map(|n| n.div_ceil(256) * 64),
        dtype => padded.and_then(|n| n.checked_mul(dtype.size() as u64)),
    };
    if wanted != Some(constant.nbytes) {
        return Err(Fault::plan(format!(
            "it says it has {} bytes; its shape and layout need {wanted:?}",
            constant.nbytes
        )));
    }
    if !constant.offset.is_multiple_of(ALIGN) {
        return Err(Fault::plan(format!("its offset {} is not a multiple of {ALIGN}", constant.offset)));
    }
    if constant.offset.checked_add(constant.nbytes).is_none_or(|end| end > file) {
        return Err(Fault::new(
            Code::Constants,
            format!("it ends at byte {} + {} of a file of {file}", constant.offset, constant.nbytes),
        ));
    }
    Ok(())
}

/// The slot of a buffer that has one; a view's place is checked when it is resolved.
fn check_buffer(buffer: &Buffer) -> Result<Option<Slot>> {
    if buffer.dtype.is_weight() {
        return Err(Fault::plan(format!("only constants are {}", buffer.dtype)));
    }
    check_shape(buffer.shape.len(), buffer.shape.contains(&Dim::Fixed(0)))?;
    let batch_dims: Vec<usize> =
        (0..buffer.shape.len()).filter(|&i| matches!(buffer.shape[i], Dim::Batch(_))).collect();
    if batch_dims.len() > 1 {
        return Err(Fault::plan("more than one dimension grows with the batch"));
    }
    let Some(slot) = buffer.slot else {
        if let Some(view) = &buffer.view {
            if view.strides.len() != buffer.shape.len() {
                return Err(Fault::plan(format!(
                    "{} strides for {} dimensions",
                    view.strides.len(),
                    buffer.shape.len()
                )));
            }
            if view.offset > MAX_SIZE || view.strides.iter().any(|&s| s > MAX_SIZE) {
                return Err(Fault::memory("its offset or a stride is too large"));
            }
        }
        return Ok(None);
    };
    if buffer.view.is_some() {
        return Err(Fault::plan("it has a slot and is a view; only one can be"));
    }
    let leading: &[Dim] = batch_dims.first().map_or(&[], |&i| &buffer.shape[..i]);
    if leading.iter().any(|&d| d != Dim::Fixed(1)) {
        return Err(Fault::plan("the batch is not its outermost dimension"));
    }
    let space = if batch_dims.is_empty() { Space::Fixed } else { Space::Batch };
    if slot.space != space {
        return Err(Fault::plan(format!("its slot is in the {:?} arena but its shape says {space:?}", slot.space)));
    }
    let per_unit = multiply(
        buffer.shape.iter().map(|d| match *d {
            Dim::Fixed(n) | Dim::Batch(n) => n,
        }),
        MAX_BYTES,
    );
    let end = per_unit
        .and_then(|n| {
            n.checked_mul(buffer.dtype.size() as u64)?.checked_next_multiple_of(ALIGN)?.checked_add(slot.offset)
        })
        .filter(|&end| end <= MAX_BYTES)
        .ok_or_else(|| Fault::memory("it is too large"))?;
    if !slot.offset.is_multiple_of(ALIGN) {
        return Err(Fault::memory(format!("its offset {} is not a multiple of {ALIGN}", slot.offset)));
    }
    Ok(Some(Slot { space, start: slot.offset, end }))
}
