// Acting with an exported policy in C++: onnxruntime alone, no Python.
//
//     g++ -std=c++17 -O2 act.cpp -I INCLUDE -L LIB -lonnxruntime -o act
//     ./act runs/pusht/export_nfe1/policy.onnx [inputs]
//
// A file `inputs` holds the bytes of all inputs for one chunk, one after the other in the order of the graph: the
// tests compare this program with Python so. Without it, observations are zero and noise is drawn.
//
// INCLUDE holds onnxruntime_cxx_api.h and LIB libonnxruntime.so, both of a release archive of onnxruntime. Formats `onnx`
// and `onnx-int8` open so; `openvino` folders hold the same kind of file.
//
// The inputs are `noise` [B, H, A] and `obs_0`, `obs_1`, ... [B, To, ...], in the order of the Spec in export.json; the
// output is `action` [B, N, A] in real units, whose first row belongs to the current frame. Check the file's sha256 against
// export.json before, and observations for NaN: Python's runtime does both.

#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <random>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2 && argc != 3) {
    std::cerr << "usage: act policy.onnx [inputs]\n";
    return 2;
  }
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "flowleap");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  options.SetInterOpNumThreads(1);
  options.AddConfigEntry("session.intra_op.allow_spinning", "0");
  Ort::Session session(env, argv[1], options);

  Ort::AllocatorWithDefaultOptions allocator;
  Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::mt19937 generator(0);
  std::normal_distribution<float> normal;

  // Each input's memory lives as long as the loop; write new observations to it and run again.
  std::vector<std::string> names;
  std::vector<std::vector<float>> floats;
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<Ort::Value> values;
  const size_t count = session.GetInputCount();
  floats.resize(count);
  bytes.resize(count);
  for (size_t i = 0; i < count; ++i) {
    names.emplace_back(session.GetInputNameAllocated(i, allocator).get());
    auto type = session.GetInputTypeInfo(i);
    auto info = type.GetTensorTypeAndShapeInfo();
    std::vector<int64_t> shape = info.GetShape();
    shape[0] = 1;  // the batch, -1 in the file
    size_t size = 1;
    for (int64_t dim : shape) size *= static_cast<size_t>(dim);
    if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) {
      bytes[i].assign(size, 0);  // an image, [1, To, height, width, 3]
      values.push_back(
          Ort::Value::CreateTensor<uint8_t>(memory, bytes[i].data(), size, shape.data(), shape.size()));
    } else {
      floats[i].assign(size, 0.0f);  // the To latest observations, the current one last, in the dataset's units
      if (names[i] == "noise")
        for (float& z : floats[i]) z = normal(generator);  // z ~ N(0, 1), drawn anew for every chunk
      values.push_back(
          Ort::Value::CreateTensor<float>(memory, floats[i].data(), size, shape.data(), shape.size()));
    }
  }
  if (argc == 3) {
    std::ifstream file(argv[2], std::ios::binary);
    for (size_t i = 0; i < count; ++i) {
      const bool image = !bytes[i].empty();
      char* data = image ? reinterpret_cast<char*>(bytes[i].data()) : reinterpret_cast<char*>(floats[i].data());
      if (!file.read(data, static_cast<std::streamsize>(image ? bytes[i].size() : floats[i].size() * sizeof(float)))) {
        std::cerr << argv[2] << " is too short\n";
        return 1;
      }
    }
  }
  std::vector<const char*> inputs;
  for (const std::string& name : names) inputs.push_back(name.c_str());
  const char* outputs[] = {"action"};

  auto results = session.Run(Ort::RunOptions{nullptr}, inputs.data(), values.data(), count, outputs, 1);

  const std::vector<int64_t> shape = results[0].GetTensorTypeAndShapeInfo().GetShape();
  const float* action = results[0].GetTensorData<float>();
  std::cout.precision(9);
  for (int64_t row = 0; row < shape[1]; ++row) {
    for (int64_t dim = 0; dim < shape[2]; ++dim) std::cout << (dim ? " " : "") << action[row * shape[2] + dim];
    std::cout << "\n";
  }
}
