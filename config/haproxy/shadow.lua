-- Copies requests for a shadow version to a collector, which listens at mirror.sock while there is one.
--
-- The request goes on at once: a task sends the copies, and what it cannot send within a second is dropped and
-- counted. Each copy is a frame (big-endian): requests not copied because they were too large and requests dropped,
-- since the start (4 bytes each), then the version that answers the client (2 bytes of length) and the body (4).

local ADDRESS = "unix@" .. os.getenv("CARLA_POLICY_PROXY_RUN") .. "/mirror.sock"
local MAX_WAITING = 256
local SEND_TIMEOUT_S = 1

local waiting, first, last = {}, 1, 0
local sending = false
local too_large, dropped = 0, 0

local function send_waiting()
    local connection = core.tcp()
    connection:settimeout(SEND_TIMEOUT_S)
    local ok = connection:connect(ADDRESS)
    while ok and first <= last do
        local copy = waiting[first]
        waiting[first] = nil
        first = first + 1
        ok = connection:send(string.pack(">I4I4s2s4", too_large, dropped, copy.version, copy.body))
    end
    if first <= last then
        dropped = dropped + last - first + 1
    end
    waiting, first, last = {}, 1, 0
    connection:close()
    sending = false
end

core.register_action("mirror", {"http-req"}, function(txn)
    local body = txn.f:req_body()
    if #body ~= txn.f:req_body_size() then
        too_large = too_large + 1
        return
    end
    if last - first + 1 >= MAX_WAITING then
        dropped = dropped + 1
        return
    end
    last = last + 1
    waiting[last] = {version = txn:get_var("txn.version"), body = body}
    if not sending then
        sending = true
        core.register_task(send_waiting)
    end
end)
