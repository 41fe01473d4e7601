"""The words of the widgets in Korean, keyed by the English ones: `say("weights", "ko")`. English needs no entry to be said."""

# ruff: noqa: E501 - a table of sentences; a Hangul letter counts as two

from __future__ import annotations

KOREAN = {
    # the readout
    "bits per weight": "가중치당 비트",
    "bits per number": "수 하나당 비트",
    "SQNR": "신호 대 양자화 잡음비",
    "SQNR of normal weights": "정규분포 가중치의 SQNR",
    "output error": "출력 오차",
    "output error of this block": "이 블록의 출력 오차",
    "relative error here": "여기서의 상대 오차",
    "bytes": "바이트",
    "bytes of 70 billion": "수 700억 개의 크기",
    "higher is better": "클수록 좋음",
    "on real inputs": "실제 입력 기준",
    "at most": "최대",
    "in blocks of 64": "64개 블록 기준",
    "without scales": "스케일 제외",
    "of {n}": "원래 {n}",
    "2{n} patterns": "2{n}개의 패턴",
    "{n}× smaller than float32": "float32의 1/{n}",
    # weights
    "{what}: the error is {n} times smaller than the weights; {zeros} of the weights become 0.":
        "{what}: 오차가 가중치보다 {n}배 작고, 가중치의 {zeros}가 0이 됩니다.",
    "blocks of {n}": "블록 크기 {n}",
    "one scale a row": "행마다 스케일 하나",
    "one scale for all": "전체에 스케일 하나",
    "all weights of the layer": "층의 모든 가중치",
    "their errors": "그 오차",
    "one block, enlarged ({n} levels)": "블록 하나를 확대 (레벨 {n}개)",
    "output channel {channel}, weights {first} to {last}": "출력 채널 {channel}, 가중치 {first}~{last}",
    "where the error is": "오차가 있는 곳",
    "across: along a row; down: output channels": "가로: 행 방향, 세로: 출력 채널",
    "choose a block: click, or arrow keys": "블록 고르기: 클릭 또는 화살표 키",
    "weight": "가중치",
    "code": "코드",
    "error": "오차",
    # formats
    "sign": "부호",
    "exponent": "지수",
    "mantissa": "가수",
    "integer": "정수",
    "place in the table": "표의 자리",
    "bit": "비트",
    "click a bit, or Tab and Space": "비트를 클릭하거나 Tab과 Space",
    "next below": "바로 아래 값",
    "next above": "바로 위 값",
    "relative error against magnitude": "크기에 따른 상대 오차",
    "half the gap to the neighbour": "이웃까지 간격의 절반",
    # block_scale
    "{s} of {n} weights saturate, {v} vanish (become 0).":
        "가중치 {n}개 중 {s}개가 포화되고 {v}개가 0으로 사라집니다.",
    "{s} saturate, {v} vanish": "포화 {s}, 소실 {v}",
    "weights": "가중치",
    "vanish": "소실",
    "saturate": "포화",
    "levels": "레벨",
    "SQNR against the range": "범위에 따른 SQNR",
    "range, % of the largest weight": "범위, 가장 큰 가중치의 %",
    "the conventions side by side": "규칙 나란히 보기",
    # gptq_steps
    "output error after {done} of {all} columns": "열 {all}개 중 {done}개를 반올림한 뒤의 출력 오차",
    "this run ends at": "이 실행의 끝",
    "{what} ends at": "{what}의 끝",
    "plain rounding": "단순 반올림",
    "with pushing": "오차를 밀 때",
    "Column {name}": "{name}열",
    "Column {name}, number {j} in the order,": "순서로는 {j}번인 {name}열",
    "{column} is rounded; nothing is pushed, its error stays.":
        "{column}을 반올림합니다. 아무것도 밀지 않으므로 오차가 그대로 남습니다.",
    "{column} is rounded, the last: no other is left to make up for its error.":
        "마지막인 {column}을 반올림합니다. 오차를 메워 줄 열이 더는 없습니다.",
    "{column} is rounded; its error, divided by {u} = {value}, is pushed into the last.":
        "{column}을 반올림하고, 오차를 {u} = {value}(으)로 나누어 마지막 열로 밉니다.",
    "{column} is rounded; its error, divided by {u} = {value}, is pushed into {n} others.":
        "{column}을 반올림하고, 오차를 {u} = {value}(으)로 나누어 남은 {n}개 열로 밉니다.",
    "the weights now": "지금의 가중치",
    "rounded": "반올림됨",
    "what was just pushed, {n} times enlarged": "방금 민 것, {n}배 확대",
    "nothing is pushed": "아무것도 밀지 않음",
    "row {j} of U, which pushes it": "이를 미는 U의 {j}행",
    "row {j} of U, its diagonal alone": "U의 {j}행, 대각 성분만",
    "below zero": "0보다 작음",
    "above zero": "0보다 큼",
    "output error so far, %": "지금까지의 출력 오차, %",
    "GPTQ": "GPTQ",
    "columns rounded": "반올림한 열의 수",
    "this step in row {row}": "{row}행에서 이 단계",
    "round": "반올림",
    "divide": "나누기",
    "push": "밀기",
    "no column is left": "남은 열이 없음",
    "U[j,k] is taken as 0: nothing changes": "U[j,k]를 0으로 봄: 바뀌는 것이 없음",
    "choose a column and a row: click, or arrow keys": "열과 행 고르기: 클릭 또는 화살표 키",
    "8 × 16 toy": "8 × 16 예제",
    "back": "뒤로",
    "next": "다음",
    "piece": "조각",
    "push the error (GPTQ)": "오차 밀기 (GPTQ)",
    "act-order": "act-order",
    "row": "행",
    "step": "단계",
    "Which 8 × 16 weights of the layer.": "층의 어느 8 × 16 가중치인가.",
    "Added to H's diagonal, times its mean.": "H의 대각 평균에 곱해 대각에 더한다.",
    "Off: plain rounding, column by column.": "끄면 열마다 단순 반올림.",
    "Columns with the largest inputs first.": "입력이 큰 열부터.",
    "Whose numbers are written out.": "숫자를 적어 보일 행.",
    "Arrow keys: a column on, a column back.": "화살표 키: 한 열 앞으로, 뒤로.",
    "GPTQ column by column: round one, push its error into the others, see what that saves.":
        "열마다 보는 GPTQ: 하나를 반올림하고 그 오차를 나머지로 밀어, 무엇이 줄어드는지 보세요.",
    # report
    "median loss": "손실의 중앙값",
    "median ratio to RTN": "RTN 대비 중앙값",
    "with remarks": "살펴볼 층",
    "has remarks": "살펴볼 점 있음",
    "no calibration text": "보정 글 없음",
    "no held-out text": "따로 둔 글 없음",
    "held-out text: {n} ×": "따로 둔 글: {n} ×",
    "of {n} linears": "선형층 {n}개 중",
    "{what}: {path}, {show} {value}; {n} linears worse than RTN.":
        "{what}: {path}, {show} {value}; RTN보다 나쁜 선형층 {n}개.",
    "{what}: {path}, {show} {value}.": "{what}: {path}, {show} {value}.",
    "choose a layer: click, or arrow keys": "층 고르기: 클릭 또는 화살표 키",
    "{first} to {last} of {all}": "{all}개 중 {first}~{last}",
    "on held-out text": "따로 둔 글에서",
    "loss": "손실",
    "held-out loss": "따로 둔 글의 손실",
    "on calibration text": "보정 글에서",
    "ratio to RTN": "RTN 대비 손실",
    "held-out ratio to RTN": "따로 둔 글의 RTN 대비 손실",
    "weight error": "가중치 오차",
    "largest error": "가장 큰 오차",
    "clipped, %": "잘린 가중치, %",
    "clipped weights": "잘린 가중치",
    "tokens": "토큰",
    "scale range": "스케일 최대/최소",
    "shape, out × in": "모양, 출력 × 입력",
    "dead channels": "죽은 채널",
    "damping": "댐핑",
    "rung of the ladder": "사다리 단",
    "scales": "스케일",
    "seconds": "초",
    "Nothing stands out in this layer.": "이 층에는 눈에 띄는 점이 없습니다.",
    "{note}": "{note}",
    "Worse than rounding: {n} times RTN's loss on the calibration text.":
        "반올림보다 나쁩니다: 보정 글에서 RTN 손실의 {n}배.",
    "On held-out text too: {n} times.": "따로 둔 글에서도 {n}배입니다.",
    "Better than rounding on the text it has seen, worse on held-out text ({n} times): it fits its calibration text; more tokens help.":
        "본 글에서는 반올림보다 좋지만 따로 둔 글에서는 나쁩니다({n}배): 보정 글에 맞춰진 것이니 토큰을 늘리세요.",
    "Rung {rung}: H was not positive definite with less damping; {damp} times the mean of its diagonal was added. The more is added, the closer the result comes to plain rounding.":
        "{rung}단: 더 작은 댐핑으로는 H가 양의 정부호가 아니어서 대각 평균의 {damp}배를 더했습니다. 많이 더할수록 결과는 단순 반올림에 가까워집니다.",
    "{n} of {inputs} input channels were zero in every token: nothing is known about their weights.":
        "입력 채널 {inputs}개 중 {n}개가 모든 토큰에서 0이었습니다: 그 가중치에 대해서는 아는 것이 없습니다.",
    "{tokens} tokens for {inputs} input channels: H cannot have full rank, only damping makes it invertible.":
        "입력 채널 {inputs}개에 토큰 {tokens}개: H의 계수가 모자라 댐핑으로만 역행렬이 생깁니다.",
    "{n} of the weights lie beyond the range and are cut to its ends.":
        "가중치의 {n}가 범위를 벗어나 끝값으로 잘립니다.",
    # controls
    "layer": "층",
    "show": "보기",
    "order": "순서",
    "kind": "종류",
    "all kinds": "모든 종류",
    "forward order": "계산 순서",
    "worst first": "나쁜 것부터",
    "numbers": "수의 종류",
    "integer, zero point": "정수, 영점",
    "float": "부동소수점",
    "normal float": "정규분포 부동소수점",
    "bits": "비트",
    "block": "블록",
    "range rule": "범위 규칙",
    "channel": "채널",
    "place": "위치",
    "scale": "스케일",
    "zero point": "영점",
    "range, %": "범위, %",
    "format": "형식",
    "value": "값",
    "compare": "비교",
    "logarithmic line": "로그 눈금",
    "same largest value": "최댓값 맞추기",
    "run": "실행",
    "stop": "중지",
    # what the controls do
    "What the picture compares.": "무엇을 비교하는가.",
    "As the data flows, or the largest on top.": "계산 순서로, 또는 큰 것부터.",
    "All linears, or those of one kind.": "모든 선형층, 또는 한 종류만.",
    "Which matrix of the model.": "모델의 어느 행렬인가.",
    "Which kind of numbers the levels are.": "레벨이 어떤 수인가.",
    "Bits of a code: n bits are 2ⁿ levels.": "코드의 비트: n비트면 레벨 2ⁿ개.",
    "How many weights share one scale.": "스케일 하나를 나누는 가중치 수.",
    "How a block finds its scale.": "블록이 스케일을 정하는 방법.",
    "Whose bits are shown.": "어느 형식의 비트인가.",
    "Arrow keys walk to the neighbouring values.": "화살표 키로 이웃 값으로 간다.",
    "The second format, below the line.": "아래에 그려지는 두 번째 형식.",
    "Floats are even here, integers on the linear line.": "부동소수점은 로그, 정수는 선형에서 고르다.",
    "As a scale does: both reach exactly 1.": "스케일처럼 둘 다 최댓값을 1로.",
    "By what the largest weight is divided.": "가장 큰 가중치를 나누는 수.",
    "Below 100: finer steps, but the largest saturate.": "100보다 작으면 간격은 촘촘, 큰 값은 포화.",
    "Levels from the least to the largest weight.": "가장 작은 가중치부터 가장 큰 것까지.",
    "Which row of the matrix …": "행렬의 어느 행 …",
    "… and which part of its row.": "… 그 행의 어느 부분인가.",
    "Compute what is missing.": "아직 없는 것을 계산한다.",
    "Stop after the step in work; what is done is kept.": "하던 것까지 하고 멈춘다. 결과는 남는다.",
    "{done} of {all} done": "{all}개 중 {done}개 완료",
    # the gallery
    "What quantization did to every layer: where it hurts, against plain rounding, and why, in words.":
        "양자화가 층마다 한 일: 어디가 나쁜지, 단순 반올림과 비교하면 어떤지, 왜 그런지 말로 보세요.",
    "A number is a pattern of bits: flip them, walk to the neighbours, lay two formats on one line.":
        "수는 비트 패턴입니다: 비트를 바꾸고, 이웃 값으로 걸어가고, 두 형식을 한 선에 놓아 보세요.",
    "A block of weights shares one scale: see which weights saturate, which vanish, and what a zero point buys.":
        "한 블록의 가중치는 스케일 하나를 나눕니다: 무엇이 포화되고 무엇이 사라지는지, 영점이 무엇을 주는지 보세요.",
    "A whole layer falls onto a grid: where the error is, what it costs in bits, what it does to the output.":
        "층 전체가 격자에 놓입니다: 오차가 어디 있는지, 비트로 얼마인지, 출력에 무엇을 하는지 보세요.",
}  # fmt: skip


def say(words: str, lang: str = "en", **values: object) -> str:
    """`words` in the language, its {places} filled.

    Raises:
        ValueError: an unknown language.
        KeyError: words that have no Korean yet.

    Example:
        >>> say("output error", "ko")
        '출력 오차'
    """
    if lang not in ("en", "ko"):
        raise ValueError(f"lang {lang!r} is not 'en' or 'ko'")
    return (KOREAN[words] if lang == "ko" else words).format(**values)
