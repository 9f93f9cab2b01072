//! Graphs of NVIDIA's driver, made of captured work.
#![allow(unsafe_code)]

use std::ptr;

use cudarc::driver::sys;

use super::super::super::super::BackendError;
use super::super::Graph;
use super::super::graph::{Node, Work};
use super::{NvidiaDriver, check, pointers, words};

impl NvidiaDriver {
    /// Makes an executable graph of these nodes. The context must be current.
    pub(super) fn instantiate(&self, nodes: &[Node]) -> Result<Graph, BackendError> {
        let mut graph = ptr::null_mut();
        // SAFETY: `graph` is a place for the result.
        check("cuGraphCreate", unsafe { sys::cuGraphCreate(&mut graph, 0) })?;
        let made = self.add_nodes(graph, nodes).and_then(|()| {
            let mut runnable = ptr::null_mut();
            // SAFETY: the graph was made above, and `runnable` is a place for the result.
            let code = unsafe { sys::cuGraphInstantiateWithFlags(&mut runnable, graph, 0) };
            check("cuGraphInstantiate", code).map(|()| Graph(runnable as u64))
        });
        // SAFETY: made above, and destroyed once; the executable graph does not depend on it.
        let _ = unsafe { sys::cuGraphDestroy(graph) };
        made
    }

    /// Adds nodes to a graph of the driver.
    fn add_nodes(&self, graph: sys::CUgraph, nodes: &[Node]) -> Result<(), BackendError> {
        let mut made: Vec<sys::CUgraphNode> = Vec::with_capacity(nodes.len());
        for Node { work, after } in nodes {
            let unmade =
                BackendError::Shape { what: "nodes before one of a graph", expected: made.len() as u64, got: 0 };
            let after: Option<Vec<_>> = after.iter().map(|node| made.get(*node).copied()).collect();
            let after = after.ok_or(unmade)?;
            let mut node = ptr::null_mut();
            let (op, code) = match work {
                Work::Launch { kernel, grid: (x, y), block, shared, arguments } => {
                    let mut words = words(arguments)?;
                    let mut places = pointers(&mut words);
                    let params = sys::CUDA_KERNEL_NODE_PARAMS {
                        func: self.kernel(kernel, *shared)?,
                        gridDimX: *x,
                        gridDimY: *y,
                        gridDimZ: 1,
                        blockDimX: *block,
                        blockDimY: 1,
                        blockDimZ: 1,
                        sharedMemBytes: *shared,
                        kernelParams: places.as_mut_ptr(),
                        extra: ptr::null_mut(),
                        kern: ptr::null_mut(),
                        ctx: ptr::null_mut(),
                    };
                    // SAFETY: `after` has `after.len()` nodes of this graph; the arguments are those that `launch` was
                    // called with, whose caller vouched for them, and are copied before the call returns.
                    let code =
                        unsafe { sys::cuGraphAddKernelNode_v2(&mut node, graph, after.as_ptr(), after.len(), &params) };
                    (*kernel, code)
                }
                Work::Zero { at, bytes } => {
                    // By words if possible.
                    let size = if at.0 % 4 == 0 && bytes % 4 == 0 { 4 } else { 1 };
                    let width = *bytes as usize / size;
                    let params = sys::CUDA_MEMSET_NODE_PARAMS {
                        dst: at.0,
                        pitch: *bytes as usize,
                        value: 0,
                        elementSize: size as u32,
                        width,
                        height: 1,
                    };
                    // SAFETY: as above; the caller of `zero` vouched for the range.
                    let code = unsafe {
                        let (after, count) = (after.as_ptr(), after.len());
                        sys::cuGraphAddMemsetNode(&mut node, graph, after, count, &params, self.context)
                    };
                    ("cuGraphAddMemsetNode", code)
                }
            };
            check(op, code)?;
            made.push(node);
        }
        Ok(())
    }
}
