// Python's face of what only the learner uses.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "bind/bind.h"
#include "play/full_deal.h"
#include "play/lane.h"

namespace py = pybind11;

namespace shmzero {
namespace {

/// The array `name` of `arrays`, checked: C order, `dtype`, [rows, columns] or [rows].
template <class T>
T* column(const py::dict& arrays, const char* name, const char* dtype, py::ssize_t rows,
          py::ssize_t columns) {
  const auto fail = [&](const std::string& why) {
    throw py::value_error(std::string("replay_full_deal: array '") + name + "' " + why +
                          "; wanted " + dtype + " [" + std::to_string(rows) +
                          (columns > 1 ? ", " + std::to_string(columns) : "") + "] in C order");
  };
  if (!arrays.contains(name)) fail("is missing");
  if (!py::isinstance<py::array>(arrays[name])) fail("is no array");
  auto array = py::cast<py::array>(arrays[name]);
  if (!array.dtype().is(py::dtype(dtype)) && !array.dtype().equal(py::dtype(dtype)))
    fail("has another dtype");
  const bool fits = array.ndim() == (columns > 1 ? 2 : 1) && array.shape(0) == rows &&
                    (columns == 1 || array.shape(1) == columns);
  if (!fits) fail("has another shape");
  if (!(array.flags() & py::array::c_style)) fail("is strided");
  return static_cast<T*>(array.mutable_data());
}

FullDealView view_of(const py::dict& arrays) {
  if (!arrays.contains("masks"))
    throw py::value_error("replay_full_deal: array 'masks' is missing");
  const py::ssize_t rows = py::cast<py::array>(arrays["masks"]).size();
  if (rows == 0) throw py::value_error("replay_full_deal: arrays of 0 rows; allowed: 1 or more");
  return {
      .features = column<std::uint16_t>(arrays, "features", "float16", rows, kNumFeatures),
      .masks = column<std::uint64_t>(arrays, "masks", "uint64", rows, 1),
      .hands = column<std::uint8_t>(arrays, "hands", "uint8", rows, kNumHands * kNumCards),
      .silent = column<std::uint8_t>(arrays, "silent", "uint8", rows, 1),
      .actions = column<std::uint8_t>(arrays, "actions", "uint8", rows, 1),
      .utilities = column<float>(arrays, "utilities", "float32", rows, 1),
      .policies = column<std::uint16_t>(arrays, "policies", "float16", rows, kNumActions),
      .seat_features =
          column<std::uint16_t>(arrays, "seat_features", "float16", rows, kNumFeatures),
      .seat_utilities = column<float>(arrays, "seat_utilities", "float32", rows, 1),
      .tricks = column<std::uint8_t>(arrays, "tricks", "uint8", rows, 1),
      .versions = column<std::uint32_t>(arrays, "versions", "uint32", rows, 1),
      .capacity = static_cast<std::size_t>(rows),
  };
}

using Outcomes = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::size_t replay_records(const std::vector<py::bytes>& records, const py::dict& arrays,
                           std::size_t at, std::uint64_t seat_seed,
                           const std::optional<Outcomes>& outcomes,
                           const std::optional<std::vector<int>>& seats) {
  const FullDealView view = view_of(arrays);
  const std::vector<std::string> owned(records.begin(), records.end());
  if (outcomes &&
      (outcomes->ndim() != 2 || outcomes->shape(0) != static_cast<py::ssize_t>(owned.size()) ||
       outcomes->shape(1) != kMaxPlayers)) {
    throw py::value_error("replay_full_deal: outcomes has another shape; wanted [records, " +
                          std::to_string(kMaxPlayers) + "]");
  }
  if (seats && seats->size() != owned.size()) {
    throw py::value_error("replay_full_deal: " + std::to_string(seats->size()) + " seats for " +
                          std::to_string(owned.size()) + " records");
  }
  const float* outcome = outcomes ? outcomes->data() : nullptr;
  const GilRelease release;
  std::size_t written = 0;
  for (std::size_t i = 0; i < owned.size(); ++i) {
    ReplayChoice choice;
    if (outcome != nullptr) choice.outcomes = outcome + i * kMaxPlayers;
    if (seats) choice.only_seat = (*seats)[i];
    written += replay_full_deal(decode_record(owned[i]), seat_seed, view, at + written, choice);
  }
  return written;
}

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

/// (rows [K] i64, hands [K, 8 x 52] u8): of each row with silent seats `times` deals that were as
/// likely.
py::tuple redeal_silent(const Bytes& hands, const Bytes& silent, int times, std::uint64_t seed) {
  constexpr py::ssize_t kColumns = kNumHands * kNumCards;
  if (hands.ndim() != 2 || hands.shape(1) != kColumns || silent.ndim() != 1 ||
      silent.shape(0) != hands.shape(0)) {
    throw py::value_error("redeal: arrays of another shape; wanted hands [N, " +
                          std::to_string(kColumns) + "] and silent [N]");
  }
  if (times < 0) throw py::value_error("redeal: times is negative; allowed: 0 or more");
  const py::ssize_t number = silent.shape(0);
  const std::vector<std::uint8_t> marks(silent.data(), silent.data() + number);
  const py::ssize_t total = times * (number - std::count(marks.begin(), marks.end(), 0));
  py::array_t<std::int64_t> rows(total);
  py::array_t<std::uint8_t> dealt({total, kColumns});
  std::int64_t* row = rows.mutable_data();
  std::uint8_t* out = dealt.mutable_data();
  const std::uint8_t* const in = hands.data();
  {
    const GilRelease release;
    Rng rng(stream_key(seed, 0, 0, Purpose::kRedeal));
    for (py::ssize_t i = 0; i < number; ++i) {
      const unsigned mark = marks[static_cast<std::size_t>(i)];
      for (int k = 0; mark != 0 && k < times; ++k, out += kColumns) {
        *row++ = i;
        std::copy_n(in + i * kColumns, kColumns, out);
        redeal(out, mark, rng);
      }
    }
  }
  return py::make_tuple(rows, dealt);
}

/// [N, 8] share of the win by seat, of the games that records of rounds belong to: the last round
/// of a game decides, which must be among those that follow it. Throws ValueError for rounds
/// outside games.
py::array_t<float> game_win_shares(const std::vector<py::bytes>& records) {
  py::array_t<float> shares(
      {static_cast<py::ssize_t>(records.size()), static_cast<py::ssize_t>(kMaxPlayers)});
  float* out = shares.mutable_data();
  std::optional<std::uint64_t> game;  // of the record after this one
  for (std::size_t i = records.size(); i-- > 0;) {
    const RoundRecord record = decode_record(records[i]);
    const GameContext& context = record.settings.game;
    if (context.num_rounds == 0)
      throw py::value_error("round " + std::to_string(record.id) + " belongs to no game");
    const std::uint64_t its_game = record.id / Lane::kMaxRoundsPerGame;
    if (its_game != game) {
      if (context.rounds_played + 1 != context.num_rounds) {
        throw py::value_error("the last round of game " + std::to_string(its_game) +
                              " is not among the records");
      }
      Round end = record.start();
      for (const std::uint8_t action : record.actions) apply(end, action);
      win_shares(end, out + i * kMaxPlayers);
    } else {
      std::copy_n(out + (i + 1) * kMaxPlayers, kMaxPlayers, out + i * kMaxPlayers);
    }
    game = its_game;
  }
  return shares;
}

}  // namespace

void bind_train(py::module_& m) {
  m.attr("NUM_HANDS") = kNumHands;
  m.def("replay_full_deal", &replay_records, py::arg("records"), py::arg("arrays"),
        py::arg("at") = 0, py::arg("seat_seed") = 0, py::arg("outcomes") = py::none(),
        py::arg("seats") = py::none());
  m.def("redeal", &redeal_silent, py::arg("hands").noconvert(), py::arg("silent").noconvert(),
        py::arg("times"), py::arg("seed") = 0);
  m.def("game_win_shares", &game_win_shares, py::arg("records"));
}

}  // namespace shmzero
