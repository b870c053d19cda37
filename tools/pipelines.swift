// What Metal says of each kernel's pipeline on this Mac, as CSV:
//
//     cargo xtask msl --out target/msl && swift tools/pipelines.swift target/msl
//
// A kernel's text bounds its threads to those that it is launched with, and Metal would answer with that
// bound. It is taken away here, so `threads` is what the registers leave room for: the largest threadgroup of
// this pipeline. The offline gauge (tools/agx-gauge) estimates the same for an M1.
//
// No run of this script on a Mac is recorded yet.

import Foundation
import Metal

guard CommandLine.arguments.count == 2, let device = MTLCreateSystemDefaultDevice() else {
    FileHandle.standardError.write(Data("usage: pipelines.swift FOLDER, on a Mac with a GPU\n".utf8))
    exit(2)
}
let folder = URL(fileURLWithPath: CommandLine.arguments[1])
let files = try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
var failed = 0
print("device,file,threads,subgroup,threadgroup_bytes")
for file in files.filter({ $0.pathExtension == "metal" }).sorted(by: { $0.path < $1.path }) {
    let bound = #"\[\[max_total_threads_per_threadgroup\(\d+\)\]\]"#
    let text = try String(contentsOf: file, encoding: .utf8)
        .replacingOccurrences(of: bound, with: "", options: .regularExpression)
    do {
        let library = try device.makeLibrary(source: text, options: nil)
        for name in library.functionNames {
            let function = library.makeFunction(name: name)!
            let pipeline = try device.makeComputePipelineState(function: function)
            let threads = pipeline.maxTotalThreadsPerThreadgroup
            let bytes = pipeline.staticThreadgroupMemoryLength
            let subgroup = pipeline.threadExecutionWidth
            print("\(device.name),\(file.lastPathComponent),\(threads),\(subgroup),\(bytes)")
        }
    } catch {
        failed += 1
        FileHandle.standardError.write(Data("\(file.lastPathComponent): \(error)\n".utf8))
    }
}
exit(failed == 0 ? 0 : 1)
