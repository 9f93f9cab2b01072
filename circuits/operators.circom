pragma circom 2.0.0;

// Every operator and statement of circom that its witness programs compute with, for tests that compare two ways to run
// them. Its witness means nothing.

// A table of constants, some of them equal, as hash functions have.
function table(i) {
    var t[24] = [
        1, 2, 3, 4, 5, 6, 7, 7, 7, 0, 0, 1,
        21888242871839275222246405745257275088548364400416034343698204186575808495616,
        0x2833e84879b970912833e84879b97091, 1, 2, 1 << 31, (1 << 31) - 1, -(1 << 31), -1, 5, 5, 5, 5
    ];
    return t[i % 24];
}

function matrix(n) {
    var m[3][8];
    for (var i = 0; i < 3; i++) {
        for (var j = 0; j < 8; j++) {
            m[i][j] = i * n + j;
        }
    }
    return m;
}

function power(x, n) {
    if (n == 0) {
        return 1;
    }
    return x * power(x, n - 1);
}

template Square() {
    signal input in;
    signal output out;
    out <== in * in;
}

template Operators() {
    signal input a;
    signal input b;
    signal input c[3];
    signal output out;

    var x = a;
    var y = b;
    signal results[34];
    results[0] <-- x + y;
    results[1] <-- x - y;
    results[2] <-- x * y;
    results[3] <-- y == 0 ? 0 : x / y;
    results[4] <-- y == 0 ? 0 : x \ y;
    results[5] <-- y == 0 ? 0 : x % y;
    results[6] <-- x ** (y & 0xff);
    results[7] <-- x & y;
    results[8] <-- x | y;
    results[9] <-- x ^ y;
    results[10] <-- ~x;
    results[11] <-- x << (y & 0x1ff);
    results[12] <-- x >> (y & 0x1ff);
    results[13] <-- x < y;
    results[14] <-- x > y;
    results[15] <-- x <= y;
    results[16] <-- x >= y;
    results[17] <-- x == y;
    results[18] <-- x != y;
    results[19] <-- !(x < y) && (x != 0) || (y == 1);
    results[20] <-- -x;
    results[21] <-- x == 0 ? 0 : 1 / x;
    results[22] <-- table(x & 31) + table(y & 31);
    var m[3][8] = matrix(x);
    results[23] <-- m[2][y & 7] * x - m[1][x & 7];
    results[24] <-- power(x, y & 7);
    // Sums and products of short, long and Montgomery forms.
    var sum = 0;
    for (var i = 0; i < 3; i++) {
        sum += c[i] * (i - 1) + x * x - 3;
        sum = sum * (i + 1) - c[i];
    }
    results[25] <-- sum;
    results[26] <-- (sum > x) + (sum * sum == x) + (x * x > y * y) + (x - 1 < y + 1);
    results[27] <-- (x * x) & (y * 2);
    results[28] <-- (x + 1) \ 3;
    results[29] <-- (x * y) % 1000;
    results[30] <-- x << -1;
    results[31] <-- x >> -(y & 3);
    results[32] <-- (x - y) * (x - y) - (y - x) * (y - x);
    results[33] <-- (2 * x - 2 * y) \ 7;

    component squares[3];
    var total = 0;
    for (var i = 0; i < 3; i++) {
        squares[i] = Square();
        squares[i].in <== c[i] + a * i;
        total += squares[i].out;
    }
    // Takes as long as the input says.
    var steps = 0;
    if (c[0] == 1000003) {
        while (steps != c[2]) {
            steps += 1;
        }
    }
    signal counted;
    counted <-- steps;
    // Fails for some inputs.
    assert(c[0] != 13);
    signal bit;
    bit <-- c[1] == 13 ? 2 : c[2] & 1;
    bit * (bit - 1) === 0;
    for (var i = 0; i < 34; i++) {
        total += results[i];
    }
    total += counted;
    signal product;
    product <== total * a;
    out <== product + b;
}

component main = Operators();
