-- Copies requests for a shadow version to a collector, which listens at mirror.sock while there is one.
--
-- The request itself goes on at once. A task sends the copies; what cannot be sent within a second is dropped. A copy
-- is a frame (big-endian): how many were dropped before it (4 bytes), the version that answers the client (2 bytes of
-- length, then its name) and the body (4 bytes of length, then the bytes; none of a body that was too large to copy).

local ADDRESS = "unix@" .. os.getenv("CARLA_POLICY_PROXY_RUN") .. "/mirror.sock"
local MAX_WAITING = 256
local SEND_TIMEOUT_S = 1

local waiting, first, last = {}, 1, 0
local sending = false
local dropped = 0

local function send_waiting()
    local connection = core.tcp()
    connection:settimeout(SEND_TIMEOUT_S)
    local listening = connection:connect(ADDRESS)
    local sent = listening
    while sent and first <= last do
        local copy, counted = waiting[first], dropped
        waiting[first] = nil
        first = first + 1
        sent = connection:send(string.pack(">I4s2s4", counted, copy.version, copy.body))
        dropped = sent and dropped - counted or dropped + 1
    end
    dropped = listening and dropped + last - first + 1 or 0
    waiting, first, last = {}, 1, 0
    connection:close()
    sending = false
end

core.register_action("mirror", {"http-req"}, function(txn)
    if last - first + 1 >= MAX_WAITING then
        dropped = dropped + 1
        return
    end
    local body = txn.f:req_body()
    local size = txn.f:req_body_size()
    if size == 0 then
        return
    end
    if #body ~= size then
        body = ""
    end
    last = last + 1
    waiting[last] = {version = txn:get_var("txn.version"), body = body}
    if not sending then
        sending = true
        core.register_task(send_waiting)
    end
end)
