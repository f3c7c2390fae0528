-- n, turns, start; epoch and id, or for an absent conversation none and the newest mark; and the pinned positions.
local head = pack('>I4I4I4', n, turns, start) .. (epoch == '' and '\0' or epoch) .. (tip == '' and '\0' or tip) .. pinned
