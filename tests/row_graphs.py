"""Graphs in ONNX's text form whose rows influence each other, or do not, by their operators."""

MIXING = {
    "a mean over all rows, of any size": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            m = ReduceMean <axes = [0], keepdims = 1> (x)
            y = Sub (x, m)
        }""",
    "a product that is 0, unless a value is infinite": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[1] second = {1}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            places = Range (zero, n, one)
            a = Unsqueeze (places, first)
            b = Unsqueeze (places, second)
            same = Equal (a, b)
            eye = Cast <to = 1> (same)
            y = MatMul (eye, x)
        }""",
    "scores of rows by rows": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            t = Transpose <perm = [1, 0]> (x)
            s = MatMul (x, t)
            p = Softmax <axis = -1> (s)
            y = MatMul (p, x)
        }""",
    "the number of rows as a value": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 zero = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            f = Cast <to = 1> (n)
            y = Div (x, f)
        }""",
    "the place of a row as a value": """
        agraph (float[N] x) => (float[N] y) <int64 zero = {0}, int64 one = {1}> {
            n = Size (x)
            places = Range (zero, n, one)
            f = Cast <to = 1> (places)
            y = Add (x, f)
        }""",
    "a branch by the number of rows": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 zero = {0}, int64 most = {64}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            many = Greater (n, most)
            y = If (many) <
                then_branch = yes () => (float[N, 4] a) { a = Neg (x) },
                else_branch = no () => (float[N, 4] b) { b = Identity (x) }
            >
        }""",
    "normalized in training form": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <float[4] s = {1, 1, 1, 1}, float[4] b = {0, 0, 0, 0}, float[4] m = {0, 0, 0, 0},
         float[4] v = {1, 1, 1, 1}> {
            y, mean, var = BatchNormalization <training_mode = 1> (x, s, b, m, v)
        }""",
    "the previous row": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[1] zero = {0}, int64[1] last = {-1}, int64[1] axis = {0}, int64[1] one = {1}> {
            head = Slice (x, zero, last, axis)
            first = Slice (x, zero, one, axis)
            moved = Concat <axis = 0> (first, head)
            y = Add (x, moved)
        }""",
    "in another order": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[1] start = {-1}, int64[1] end = {-1000}, int64[1] axis = {0}, int64[1] by = {-1}> {
            y = Slice (x, start, end, axis, by)
        }""",
    "a reshape that puts two rows beside each other": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64[2] across = {4, -1}> {
            turned = Reshape (x, across)
            y = Transpose <perm = [1, 0]> (turned)
        }""",
    "the largest word of all rows": """
        agraph (string[N] x) => (float[N] y) <string word = {"zebra"}> {
            same = Equal (x, word)
            f = Cast <to = 1> (same)
            m = ReduceMax <keepdims = 0> (f)
            y = Add (f, m)
        }""",
    "behind numbers of eight bits": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            small = Cast <to = 17> (x)
            wide = Cast <to = 1> (small)
            m = ReduceMax <keepdims = 0> (wide)
            y = Sub (wide, m)
        }""",
    "within a loop": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 rounds = {2}, bool go = {1}> {
            y = Loop (rounds, go, x) <body = round (int64 i, bool on, float[N, 4] h) =>
                (bool on_out, float[N, 4] h_out) {
                on_out = Identity (on)
                m = ReduceMean <axes = [0], keepdims = 1> (h)
                h_out = Sub (h, m)
            }>
        }""",
    "only from the second round of a loop on": """
        agraph (float[N, 4] x) => (float[1, 4] z, float[N, 4] y)
        <int64 rounds = {2}, bool go = {1}, float[1, 4] zero = {0, 0, 0, 0}> {
            z, y = Loop (rounds, go, zero, x) <body = round (int64 i, bool on, float[1, 4] s,
                float[N, 4] h) => (bool on_out, float[1, 4] s_out, float[N, 4] h_out) {
                on_out = Identity (on)
                s_out = ReduceMax <axes = [0], keepdims = 1> (h)
                h_out = Add (h, s)
            }>
        }""",
    "within a scan over steps": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            steps = Transpose <perm = [1, 0]> (x)
            o = Scan <num_scan_inputs = 1, body = step (float[N] h) => (float[N] h_out) {
                m = ReduceMax <keepdims = 0> (h)
                h_out = Sub (h, m)
            }> (steps)
            y = Transpose <perm = [1, 0]> (o)
        }""",
    "within a function": """
        agraph (float[N, 4] x) => (float[N, 4] y) { y = local.centred (x) }
        <opset_import: ["" : 17], domain: "local"> centred (x) => (y) {
            m = ReduceMean <axes = [0], keepdims = 1> (x)
            y = Sub (x, m)
        }""",
    "rows moved by one, as many as before": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[4] pads = {1, 0, -1, 0}> {
            y = Pad (x, pads)
        }""",
    "the number of values that are not 0": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            some = NonZero (x)
            count = Size (some)
            f = Cast <to = 1> (count)
            y = Add (x, f)
        }""",
    "dots of any axes": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            s = Einsum <equation = "...id,...jd->...ij"> (x, x)
            m = ReduceMax <axes = [1], keepdims = 1> (s)
            y = Add (x, m)
        }""",
    "scores by an operator of ONNX Runtime": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            s = com.microsoft.FusedMatMul <transB = 1> (x, x)
            y = com.microsoft.FusedMatMul (s, x)
        }""",
    "an operator without a rule": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            s = com.microsoft.CDist <metric = "sqeuclidean"> (x, x)
            m = ReduceMax <axes = [1], keepdims = 1> (s)
            y = Add (x, m)
        }""",
    "ones on the diagonal": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            e = EyeLike (x)
            y = Add (x, e)
        }""",
    "a sequence of rows": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}> {
            s = SplitToSequence <axis = 0> (x)
            a = SequenceAt (s, zero)
            m = ReduceMax <axes = [1], keepdims = 1> (a)
            y = Add (x, m)
        }""",
    "a scan along the rows": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <float[4] start = {0, 0, 0, 0}> {
            last, y = Scan <num_scan_inputs = 1, body = step (float[4] s, float[4] h) =>
            (float[4] s_out, float[4] h_out) {
            s_out = Add (s, h)
            h_out = Identity (s_out)
            }> (start, x)
        }""",
    "a loop that ends once all rows are done": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 most = {9}, bool go = {1}, float least = {0.1}, float half = {0.5}> {
            y = Loop (most, go, x) <body = round (int64 i, bool on, float[N, 4] h) =>
            (bool on_out, float[N, 4] h_out) {
            h_out = Mul (h, half)
            m = ReduceMax <keepdims = 0> (h_out)
            on_out = Greater (m, least)
            }>
        }""",
    "a branch of the second round of a loop": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64 rounds = {2}, bool go = {1}> {
            y = Loop (rounds, go, x) <body = round (int64 i, bool on, float[N, 4] h) =>
            (bool on_out, float[N, 4] h_out) {
            on_out = Identity (on)
            later = Greater (i, zero)
            h_out = If (later) <then_branch = t () => (float[N, 4] a) {
            m = ReduceMax <axes = [0], keepdims = 1> (x)
            a = Add (h, m)
            }, else_branch = e () => (float[N, 4] b) { b = Identity (h) }>
            }>
        }""",
    "one more than the number of rows": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            more = Add (n, one)
            places = Range (zero, more, one)
            m = ReduceMax <keepdims = 0> (places)
            f = Cast <to = 1> (m)
            y = Mul (x, f)
        }""",
    "ones for all pairs of rows": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[1] last = {1}> {
            n = Shape <end = 1> (x)
            pairs = Concat <axis = 0> (n, n)
            ones = ConstantOfShape <value = float[1] {1}> (pairs)
            sums = ReduceSum <keepdims = 1> (ones, last)
            y = Mul (x, sums)
        }""",
    "a table's element by the number of rows": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <float start = {0}, float end = {2000}, float step = {1}, int64 zero = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            table = Range (start, end, step)
            t = Gather (table, n)
            y = Mul (x, t)
        }""",
    "as many columns as rows": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[1] first = {0}, int64[1] second = {1}> {
            n = Shape <end = 1> (x)
            s = Slice (x, first, n, second)
            y = ReduceSum <keepdims = 1> (s, second)
        }""",
    "rows by an index that runs backwards": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            places = Range (zero, n, one)
            last = Sub (n, one)
            back = Sub (last, places)
            y = Gather (x, back)
        }""",
    "the next row by an index of several axes": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] second = {1}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            places = Range (zero, n, one)
            next = Add (places, one)
            round = Mod (next, n)
            index = Unsqueeze (round, second)
            y = GatherND (x, index)
        }""",
    "rows put where an index says": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] second = {1}, float none = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            places = Range (zero, n, one)
            last = Sub (n, one)
            back = Sub (last, places)
            index = Unsqueeze (back, second)
            empty = Mul (x, none)
            y = ScatterND (empty, index, x)
        }""",
    "a state that belongs to another row": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <float[1,2,4] W = {1,1,1,1,1,1,1,1}, float[1,2,2] R = {1,0,0,1}, int64[1] first = {0},
         int64[1] second = {1}, int64[1] two = {2}, int64[2] flat = {-1, 4},
         int64[3] size = {1, 2, 1}> {
            pair = Concat <axis = 0> (x, x)
            one = Unsqueeze (x, second)
            twice = Expand (one, size)
            turned = Reshape (twice, flat)
            steps = Unsqueeze (turned, first)
            state = Slice (pair, first, two, second)
            h = Unsqueeze (state, first)
            o, last = RNN <hidden_size = 2> (steps, W, R, , , h)
            y = Reshape (last, flat)
        }""",
    "a norm over a single axis": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[2] column = {-1, 1}> {
            c = ReduceMax <axes = [1], keepdims = 0> (x)
            n = ai.onnx.ml.Normalizer <norm = "MAX"> (c)
            y = Reshape (n, column)
        }""",
    "branches that use one name for different tensors": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[1] most = {4}, int64[1] first = {0}> {
            w = Shape <start = 1> (x)
            many = Greater (w, most)
            is_many = Squeeze (many, first)
            is_few = Not (is_many)
            one = If (is_many) <then_branch = t () => (float[M, 4] a) { a = Neg (x) },
            else_branch = e () => (float[M, 4] b) { b = Identity (x) }>
            two = If (is_few) <then_branch = u () => (float[M, 4] b) {
            m = ReduceMax <axes = [0], keepdims = 1> (one)
            b = Identity (m)
            }, else_branch = f () => (float[M, 4] a) { a = Neg (one) }>
            y = Add (x, two)
        }""",
    "a mean in the branch of longer requests": """
        agraph (float[N, L] x) => (float[N, L] y)
        <int64[1] most = {20}, int64[1] first = {0}> {
            w = Shape <start = 1> (x)
            many = Greater (w, most)
            is_many = Squeeze (many, first)
            y = If (is_many) <then_branch = t () => (float[N, L] a) {
            m = ReduceMean <axes = [0], keepdims = 1> (x)
            a = Sub (x, m)
            }, else_branch = e () => (float[N, L] b) { b = Identity (x) }>
        }""",
    "a spectrum over the rows": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[1] last = {-1}> {
            u = Unsqueeze (x, last)
            d = DFT <axis = 0> (u)
            y = ReduceSum <keepdims = 0> (d, last)
        }""",
    "a column that the next row chose": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] second = {1}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            places = Range (zero, n, one)
            next = Add (places, one)
            turned = Mod (next, n)
            row = Unsqueeze (turned, second)
            best = ArgMax <axis = 1> (x)
            index = Concat <axis = -1> (row, best)
            found = GatherND (x, index)
            column = Unsqueeze (found, second)
            y = Add (x, column)
        }""",
    "axes that go away where there is one row": """
        agraph (float[N, 4] x) => (float[M] y) <int64[2] first = {0, 0}, int64[2] end = {9999, 1},
         int64[2] axes = {0, 1}> {
            one = Slice (x, first, end, axes)
            y = Squeeze (one)
        }""",
    "a branch by the size of a joined sequence": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 most = {99}> {
            s = SplitToSequence <axis = 1> (x)
            c = ConcatFromSequence <axis = 1> (s)
            n = Size (c)
            many = Greater (n, most)
            y = If (many) <
                then_branch = yes () => (float[N, 4] a) { a = Neg (x) },
                else_branch = no () => (float[N, 4] b) { b = Identity (x) }
            >
        }""",
    "a constant in a cell of the first row": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64 four = {4}, int64[1] zero1 = {0},
         int64[1] one1 = {1},
         int64[1] rest = {-1}, int64[1] two1 = {2}, float[1] nought = {0},
         int64[1, 2] cell = {0, 3}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            n1 = Shape <end = 1> (x)
            r = Range (zero, n, one)
            y = ScatterND (x, cell, nought)
        }""",
    "a constant in a cell of the last row": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64 four = {4}, int64[1] zero1 = {0},
         int64[1] one1 = {1},
         int64[1] rest = {-1}, int64[1] two1 = {2}, float[1] nought = {0},
         int64[1, 2] cell = {-1, 3}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            n1 = Shape <end = 1> (x)
            r = Range (zero, n, one)
            y = ScatterND (x, cell, nought)
        }""",
    "a constant in a cell of all rows as one line": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64 four = {4}, int64[1] zero1 = {0},
         int64[1] one1 = {1},
         int64[1] rest = {-1}, int64[1] two1 = {2}, float[1] nought = {0},
         int64[1] cell = {3}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            n1 = Shape <end = 1> (x)
            r = Range (zero, n, one)
            line = Reshape (x, rest)
            set = ScatterElements <axis = 0> (line, cell, nought)
            y = Reshape (set, shape)
        }""",
    "a column by the row's place": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64 four = {4}, int64[1] zero1 = {0},
         int64[1] one1 = {1},
         int64[1] rest = {-1}, int64[1] two1 = {2}, float[1] nought = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            n1 = Shape <end = 1> (x)
            r = Range (zero, n, one)
            i = Mod (r, four)
            j = Unsqueeze (i, one1)
            w = Expand (j, shape)
            y = GatherElements <axis = 1> (x, w)
        }""",
    "a column by the row's place, by two indices": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64 four = {4}, int64[1] zero1 = {0},
         int64[1] one1 = {1},
         int64[1] rest = {-1}, int64[1] two1 = {2}, float[1] nought = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            n1 = Shape <end = 1> (x)
            r = Range (zero, n, one)
            i = Mod (r, four)
            j = Unsqueeze (i, one1)
            row = Unsqueeze (r, one1)
            k = Concat <axis = 1> (row, j)
            v = GatherND (x, k)
            u = Unsqueeze (v, one1)
            y = Add (x, u)
        }""",
    "a column by the row's place, in one line": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64 four = {4}, int64[1] zero1 = {0},
         int64[1] one1 = {1},
         int64[1] rest = {-1}, int64[1] two1 = {2}, float[1] nought = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            n1 = Shape <end = 1> (x)
            r = Range (zero, n, one)
            line = Reshape (x, rest)
            i = Mod (r, four)
            start = Mul (r, four)
            k = Add (start, i)
            v = Gather (line, k)
            u = Unsqueeze (v, one1)
            y = Add (x, u)
        }""",
    "each row turned by its place": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64 four = {4}, int64[1] zero1 = {0},
         int64[1] one1 = {1},
         int64[1] rest = {-1}, int64[1] two1 = {2}, float[1] nought = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            n1 = Shape <end = 1> (x)
            r = Range (zero, n, one)
            row = Unsqueeze (r, one1)
            columns = Range (zero, four, one)
            k = Add (row, columns)
            i = Mod (k, four)
            y = GatherElements <axis = 1> (x, i)
        }""",
    "more rows by a scale from the tenth on": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64 four = {4}, int64[1] zero1 = {0},
         int64[1] one1 = {1},
         int64[1] rest = {-1}, int64[1] two1 = {2}, float[1] nought = {0},
         float[2] scales = {1.1, 1}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            n1 = Shape <end = 1> (x)
            r = Range (zero, n, one)
            big = Resize <mode = "linear"> (x, , scales)
            y = Slice (big, zero1, n1, zero1)
        }""",
    "a row read with a weight of 0": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64 four = {4}, int64[1] zero1 = {0},
         int64[1] one1 = {1},
         int64[1] rest = {-1}, int64[1] two1 = {2}, float[1] nought = {0},
         float[3] scales = {1, 1, 1}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            n1 = Shape <end = 1> (x)
            r = Range (zero, n, one)
            u = Unsqueeze (x, one1)
            big = Resize <mode = "linear"> (u, , scales)
            y = ReduceMax <axes = [1], keepdims = 0> (big)
        }""",
    "sizes of two rows where there is one": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64 four = {4}, int64[1] zero1 = {0},
         int64[1] one1 = {1},
         int64[1] rest = {-1}, int64[1] two1 = {2}, float[1] nought = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            n1 = Shape <end = 1> (x)
            r = Range (zero, n, one)
            k = Max (n1, two1)
            size = Concat <axis = 0> (k, rest, two1)
            h = Reshape (x, size)
            m = ReduceMean <axes = [1]> (h)
            u = Sub (h, m)
            y = Reshape (u, shape)
        }""",
    "a branch at 200 rows, by a float": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64 four = {4}, int64[1] zero1 = {0},
         int64[1] one1 = {1},
         int64[1] rest = {-1}, int64[1] two1 = {2}, float[1] nought = {0}, float most = {200}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            n1 = Shape <end = 1> (x)
            r = Range (zero, n, one)
            f = Cast <to = 1> (n)
            c = Equal (f, most)
            k = Cast <to = 1> (c)
            y = Add (x, k)
        }""",
    "a branch at 200 rows, by a sum": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64 four = {4}, int64[1] zero1 = {0},
         int64[1] one1 = {1},
         int64[1] rest = {-1}, int64[1] two1 = {2}, float[1] nought = {0},
         int64 more = {100}, int64 most = {300}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            n1 = Shape <end = 1> (x)
            r = Range (zero, n, one)
            f = Add (n, more)
            c = Equal (f, most)
            k = Cast <to = 1> (c)
            y = Add (x, k)
        }""",
    "a number that wraps": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64 four = {4}, int64[1] zero1 = {0},
         int64[1] one1 = {1},
         int64[1] rest = {-1}, int64[1] two1 = {2}, float[1] nought = {0},
         int32 many = {4000000}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            n1 = Shape <end = 1> (x)
            r = Range (zero, n, one)
            f = Cast <to = 6> (n)
            w = Mul (f, many)
            c = Cast <to = 1> (w)
            d = Div (c, c)
            k = Sign (c)
            y = Mul (x, k)
        }""",
}

ROW_WISE = {
    "a long fill of each row": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[1] long = {300000}, int64[1] zero = {0}, int64[1] four = {4}, int64[1] one = {1}> {
            n = Shape <end = 1> (x)
            size = Concat <axis = 0> (n, long)
            fill = ConstantOfShape <value = float[1] {1}> (size)
            some = Slice (fill, zero, four, one)
            y = Mul (x, some)
        }""",
    "attention over tokens of a row, heads beside the batch": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[3] tokens = {0, 2, 2}, int64[3] heads = {2, -1, 1}, int64[2] flat = {-1, 4},
         int64[3] back = {2, -1, 2}> {
            t = Reshape (x, tokens)
            steps = Transpose <perm = [1, 0, 2]> (t)
            h = Reshape (steps, heads)
            q = Transpose <perm = [1, 0, 2]> (h)
            k = Transpose <perm = [0, 2, 1]> (q)
            s = MatMul (q, k)
            p = Softmax <axis = -1> (s)
            o = MatMul (p, q)
            u = Transpose <perm = [1, 0, 2]> (o)
            r = Reshape (u, back)
            m = Transpose <perm = [1, 0, 2]> (r)
            y = Reshape (m, flat)
        }""",
    "two copies behind each other, cut again": """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            n = Neg (x)
            both = Concat <axis = 0> (x, n)
            e = Tanh (both)
            a, b = Split <axis = 0, num_outputs = 2> (e)
            y = Sub (a, b)
        }""",
    "a state of zeros for each row": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 zero = {0}, int64[1] wide = {4},
         int64[1] axis = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            rows = Unsqueeze (n, axis)
            size = Concat <axis = 0> (rows, wide)
            start = ConstantOfShape (size)
            y = Add (x, start)
        }""",
    "sizes that follow from those of the input": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 zero = {0}, int64[1] rest = {-1},
         int64[1] axis = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            rows = Unsqueeze (n, axis)
            size = Concat <axis = 0> (rows, rest)
            t = Reshape (x, size)
            y = Relu (t)
        }""",
    "a scan over steps, with a state of each row": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64[1] rest = {1}, int64 zero = {0}> {
            steps = Transpose <perm = [1, 0]> (x)
            shape = Shape (x)
            axis = Constant <value_ints = [0]> ()
            n = Gather (shape, axis)
            start = ConstantOfShape (n)
            last, o = Scan <num_scan_inputs = 1, body = step (float[N] s, float[N] h) =>
                (float[N] s_out, float[N] h_out) {
                s_out = Add (s, h)
                h_out = Tanh (s_out)
            }> (start, steps)
            y = Transpose <perm = [1, 0]> (o)
        }""",
    "a loop over rounds": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 rounds = {3}, bool go = {1}> {
            y = Loop (rounds, go, x) <body = round (int64 i, bool on, float[N, 4] h) =>
                (bool on_out, float[N, 4] h_out) {
                on_out = Identity (on)
                t = Tanh (h)
                p = Softmax <axis = 1> (t)
                h_out = Add (h, p)
            }>
        }""",
    "a branch by another size": """
        agraph (float[N, 4] x) => (float[N, 4] y) <int64 one = {1}, int64 most = {64}> {
            shape = Shape (x)
            n = Gather (shape, one)
            many = Greater (n, most)
            y = If (many) <
                then_branch = yes () => (float[N, 4] a) {
                    m = ReduceMean <axes = [0]> (x)
                    a = Add (x, m)
                },
                else_branch = no () => (float[N, 4] b) { b = Neg (x) }
            >
        }""",
    "learned queries for each row": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[2] rest = {3, 4},
         float[1,3,4] q = {1,2,3,4,5,6,7,8,9,0,1,2},
         int64[1] second = {1}> {
            shape = Shape <end = 1> (x)
            size = Concat <axis = 0> (shape, rest)
            queries = Expand (q, size)
            t = Tanh (queries)
            turned = Transpose <perm = [0, 2, 1]> (t)
            s = MatMul (t, turned)
            p = Softmax <axis = -1> (s)
            m = MatMul (p, queries)
            c = ReduceSum <keepdims = 0> (m, second)
            y = Add (x, c)
        }""",
    "a column of each row set by an index": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] second = {1}, float[1] none = {0},
         int64[2] rest = {-1, 1}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            places = Range (zero, n, one)
            row = Unsqueeze (places, second)
            zeros = Mul (row, zero)
            index = Concat <axis = 1> (row, zeros)
            size = Shape <end = 1> (x)
            values = Expand (none, size)
            y = ScatterND (x, index, values)
        }""",
    "a branch of longer requests": """
        agraph (float[N, L] x) => (float[N, L] y)
        <int64[1] most = {20}, int64[1] first = {0}> {
            w = Shape <start = 1> (x)
            many = Greater (w, most)
            is_many = Squeeze (many, first)
            y = If (is_many) <then_branch = t () => (float[N, L] a) {
            m = ReduceMean <axes = [1], keepdims = 1> (x)
            a = Sub (x, m)
            }, else_branch = e () => (float[N, L] b) { b = Identity (x) }>
        }""",
    "a column of each row that it chose itself": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] second = {1}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            places = Range (zero, n, one)
            row = Unsqueeze (places, second)
            best = ArgMax <axis = 1> (x)
            index = Concat <axis = -1> (row, best)
            found = GatherND (x, index)
            column = Unsqueeze (found, second)
            y = Add (x, column)
        }""",
    "the name of each row's class": """
        agraph (float[N, 4] x) => (float[N, 1] y)
        <float[4] names = {5, 6, 7, 8}, int64[2] column = {-1, 1}> {
            best = ArgMax <axis = 1> (x)
            label = ai.onnx.ml.ArrayFeatureExtractor (names, best)
            y = Reshape (label, column)
        }""",
    "padded within each row": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <int64[4] pads = {0, 2, 0, 1}, int64[1] from = {1}, int64[1] to = {5},
         int64[1] axis = {1}> {
            p = Pad (x, pads)
            y = Slice (p, from, to, axis)
        }""",
    "products by an operator of ONNX Runtime": """
        agraph (float[N, 4] x) => (float[N, 4] y)
        <float[3,4] w = {1,2,3,4,5,6,7,8,9,0,1,2}, float[3,4] v = {1,2,3,4,5,6,7,8,9,0,1,2}> {
            h = com.microsoft.FusedMatMul <transB = 1> (x, w)
            y = com.microsoft.FusedMatMul (h, v)
        }""",
}
